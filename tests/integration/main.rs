//! The gateway from outside: real HTTP against a real PostgreSQL and real APIs. One binary, because linking is what takes
//! time.

mod desk;
mod support;
