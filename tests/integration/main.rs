//! The gateway from outside: real HTTP against a real PostgreSQL and real APIs. One binary, because linking is what takes
//! time.

mod answers;
mod bodies;
mod desk;
mod http;
mod identity;
mod load;
mod paths;
mod probe;
mod runs;
mod support;
mod wire;
