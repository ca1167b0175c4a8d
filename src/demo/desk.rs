//! The sample API: a small support desk with state in memory, so that the demo and the tests have something
//! real behind the gateway. It is no part of the gateway and knows nothing of it, apart from keeping the
//! `Toolgate-Call` header of what it receives. `GET /_received` tells what arrived here, and thereby what
//! did not.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
};

/// How many requests `/_received` remembers; its counts go on.
const MAX_REMEMBERED: usize = 10_000;
/// How many tickets, users and deleted records there can be, of each.
const MAX_THINGS: usize = 100_000;
const MAX_BODY_BYTES: usize = 64 * 1024;
const STATUSES: [&str; 4] = ["open", "pending", "resolved", "closed"];
const ROLES: [&str; 4] = ["viewer", "agent", "supervisor", "admin"];

/// A running desk. Dropping it closes its port and every connection.
#[derive(Debug)]
pub struct Desk {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<Shared>,
    serving: JoinHandle<()>,
}

impl Desk {
    /// The base URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What `GET /_received` answers.
    pub fn received(&self) -> Value {
        self.state.world.lock().received()
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Starts a desk on a free port of 127.0.0.1. Everything but `GET /_received` asks for
/// `Authorization: Bearer <token>`.
///
/// # Errors
/// When no port can be opened.
pub async fn start(token: String) -> io::Result<Desk> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let state = Arc::new(Shared {
        authorization: format!("Bearer {token}"),
        world: Mutex::new(World::seeded()),
    });
    let router = Router::new()
        .fallback(handle)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Arc::clone(&state));
    let serving = tokio::spawn(serve(listener, router));
    Ok(Desk {
        address,
        state,
        serving,
    })
}

/// `axum::serve` would leave open connections running when it is stopped: here they end with this task,
/// so that a dropped desk is really gone.
async fn serve(listener: TcpListener, router: Router) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: without a pause this loop would spin.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A client that goes away in the middle is no concern of the desk's.
            drop(served.await);
        });
    }
}

struct Shared {
    authorization: String,
    world: Mutex<World>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut world = shared.world.lock();
    if method == Method::GET && uri.path() == "/_received" {
        return Json(world.received()).into_response();
    }
    let body = parse(&headers, &body);
    let authorized = headers
        .get(header::AUTHORIZATION)
        .is_some_and(|given| given.as_bytes() == shared.authorization.as_bytes());
    let route = Route::of(&method, uri.path());
    let answer = match (&route, authorized) {
        (_, false) => refusal(
            StatusCode::UNAUTHORIZED,
            "the bearer token is missing or wrong",
        ),
        (Some(route), true) => world.answer(route, body.as_ref()),
        (None, true) => refusal(StatusCode::NOT_FOUND, "there is nothing at this path"),
    };
    let call = headers
        .get("toolgate-call")
        .and_then(|value| value.to_str().ok());
    world.remember(
        route.as_ref().map_or("other", Route::template),
        json!({
            "method": method.as_str(), "path": uri.path(), "query": uri.query(), "body": body,
            "call": call, "status": answer.0.as_u16(),
        }),
    );
    (answer.0, Json(answer.1)).into_response()
}

/// A body of JSON, or of a form as JSON with nothing but texts; `None` when there is none or it is neither.
fn parse(headers: &HeaderMap, body: &[u8]) -> Option<Value> {
    let media_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map(|value| value.trim().to_ascii_lowercase());
    if media_type.as_deref() == Some("application/x-www-form-urlencoded") {
        let fields = form_urlencoded::parse(body);
        let fields: Map<String, Value> = fields
            .map(|(name, value)| (name.into_owned(), Value::String(value.into_owned())))
            .collect();
        return Some(Value::Object(fields));
    }
    serde_json::from_slice(body).ok()
}

type Answer = (StatusCode, Value);

fn refusal(status: StatusCode, message: &str) -> Answer {
    (status, json!({ "error": message }))
}

/// What a request asks for.
enum Route {
    Customer(String),
    Ticket(String),
    Refund,
    Mail,
    UserRole(String),
    Record(String),
}

impl Route {
    fn of(method: &Method, path: &str) -> Option<Self> {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        let id = |text: &str| -> Option<String> {
            let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
            ((1..=64).contains(&text.len()) && text.bytes().all(letter)).then(|| text.to_owned())
        };
        match (method.as_str(), segments.as_slice()) {
            ("GET", ["customers", customer]) => id(customer).map(Self::Customer),
            ("PATCH", ["tickets", ticket]) => id(ticket).map(Self::Ticket),
            ("POST", ["refunds"]) => Some(Self::Refund),
            ("POST", ["mail"]) => Some(Self::Mail),
            ("PUT", ["users", user, "role"]) => id(user).map(Self::UserRole),
            ("DELETE", ["records", record]) => id(record).map(Self::Record),
            _ => None,
        }
    }

    const fn template(&self) -> &'static str {
        match self {
            Self::Customer(_) => "GET /customers/{id}",
            Self::Ticket(_) => "PATCH /tickets/{id}",
            Self::Refund => "POST /refunds",
            Self::Mail => "POST /mail",
            Self::UserRole(_) => "PUT /users/{id}/role",
            Self::Record(_) => "DELETE /records/{id}",
        }
    }
}

struct Customer {
    name: &'static str,
    email: &'static str,
    plan: &'static str,
}

struct Ticket {
    status: String,
    assignee: Option<String>,
    notes: u64,
}

/// Everything the desk knows.
#[derive(Default)]
struct World {
    customers: BTreeMap<&'static str, Customer>,
    tickets: BTreeMap<String, Ticket>,
    roles: BTreeMap<String, String>,
    deleted: BTreeSet<String>,
    refunds: u64,
    mails: u64,
    total: u64,
    by_route: BTreeMap<&'static str, u64>,
    remembered: VecDeque<Value>,
}

impl World {
    fn seeded() -> Self {
        let mut customers = BTreeMap::new();
        for (id, name, email, plan) in [
            ("c_1001", "Ines Duarte", "ines@example.com", "pro"),
            ("c_1002", "Tomasz Lis", "tomasz@example.com", "free"),
            ("cus_1", "Mara Voss", "mara@example.org", "pro"),
            ("cus_2", "Kofi Mensah", "kofi@example.org", "team"),
            ("42", "Douglas Dent", "douglas@example.net", "free"),
        ] {
            customers.insert(id, Customer { name, email, plan });
        }
        Self {
            customers,
            ..Self::default()
        }
    }

    fn answer(&mut self, route: &Route, body: Option<&Value>) -> Answer {
        match route {
            Route::Customer(id) => self.customer(id),
            Route::Ticket(id) => self.update_ticket(id, body),
            Route::Refund => self.refund(body),
            Route::Mail => self.mail(body),
            Route::UserRole(id) => self.set_role(id, body),
            Route::Record(id) => self.delete(id),
        }
    }

    fn customer(&self, id: &str) -> Answer {
        match self.customers.get(id) {
            Some(Customer { name, email, plan }) => (
                StatusCode::OK,
                json!({"id": id, "name": name, "email": email, "plan": plan}),
            ),
            None => refusal(StatusCode::NOT_FOUND, "there is no such customer"),
        }
    }

    /// A ticket is there from the first time that somebody touches it.
    fn update_ticket(&mut self, id: &str, body: Option<&Value>) -> Answer {
        let given = |name: &str| text(body, name);
        let (status, note, assignee) = (given("status"), given("note"), given("assignee"));
        if status.is_none() && note.is_none() && assignee.is_none() {
            return bad("one of status, note and assignee must be given");
        }
        if status.is_some_and(|status| !STATUSES.contains(&status)) {
            return bad("there is no such status");
        }
        if self.tickets.len() >= MAX_THINGS && !self.tickets.contains_key(id) {
            return full();
        }
        let ticket = self.tickets.entry(id.to_owned()).or_insert_with(|| Ticket {
            status: "open".to_owned(),
            assignee: None,
            notes: 0,
        });
        if let Some(status) = status {
            status.clone_into(&mut ticket.status);
        }
        if let Some(assignee) = assignee {
            ticket.assignee = Some(assignee.to_owned());
        }
        ticket.notes += u64::from(note.is_some());
        let Ticket {
            status,
            assignee,
            notes,
        } = ticket;
        (
            StatusCode::OK,
            json!({"id": id, "status": status, "assignee": assignee, "notes": notes}),
        )
    }

    /// Any customer will do: the desk keeps no accounts.
    fn refund(&mut self, body: Option<&Value>) -> Answer {
        let (Some(customer), Some(amount), Some(currency)) = (
            text(body, "customer"),
            whole(body, "amount_cents"),
            text(body, "currency"),
        ) else {
            return bad("customer, amount_cents and currency must be given");
        };
        if amount == 0 {
            return bad("amount_cents must be 1 or more");
        }
        self.refunds += 1;
        (
            StatusCode::CREATED,
            json!({
                "refund": format!("rf_{}", self.refunds), "customer": customer,
                "amount_cents": amount, "currency": currency, "status": "succeeded",
            }),
        )
    }

    fn mail(&mut self, body: Option<&Value>) -> Answer {
        let given = |name: &str| text(body, name).is_some();
        if !(given("to") && given("subject") && given("body")) {
            return bad("to, subject and body must be given");
        }
        self.mails += 1;
        (
            StatusCode::ACCEPTED,
            json!({"message": format!("msg_{}", self.mails), "status": "queued"}),
        )
    }

    /// Every user is there and has a role from the first time that somebody gives them one.
    fn set_role(&mut self, id: &str, body: Option<&Value>) -> Answer {
        let Some(role) = text(body, "role").filter(|role| ROLES.contains(role)) else {
            return bad("role must be one of the desk's roles");
        };
        if self.roles.len() >= MAX_THINGS && !self.roles.contains_key(id) {
            return full();
        }
        self.roles.insert(id.to_owned(), role.to_owned());
        (StatusCode::OK, json!({"id": id, "role": role}))
    }

    /// Every record is there until it is deleted, so that a second deletion shows.
    fn delete(&mut self, id: &str) -> Answer {
        if self.deleted.len() >= MAX_THINGS {
            return full();
        }
        if self.deleted.insert(id.to_owned()) {
            (StatusCode::OK, json!({"id": id, "deleted": true}))
        } else {
            refusal(StatusCode::NOT_FOUND, "there is no such record")
        }
    }

    fn remember(&mut self, route: &'static str, request: Value) {
        self.total += 1;
        *self.by_route.entry(route).or_default() += 1;
        if self.remembered.len() >= MAX_REMEMBERED {
            self.remembered.pop_front();
        }
        self.remembered.push_back(request);
    }

    fn received(&self) -> Value {
        json!({"total": self.total, "by_route": self.by_route, "requests": self.remembered})
    }
}

fn bad(message: &str) -> Answer {
    refusal(StatusCode::UNPROCESSABLE_ENTITY, message)
}

fn full() -> Answer {
    refusal(
        StatusCode::INSUFFICIENT_STORAGE,
        "the desk holds no more: start it again",
    )
}

fn text<'b>(body: Option<&'b Value>, name: &str) -> Option<&'b str> {
    body?.get(name)?.as_str()
}

/// A whole number, as JSON has it or as the text of a form.
fn whole(body: Option<&Value>, name: &str) -> Option<u64> {
    match body?.get(name)? {
        Value::String(text) => text.parse().ok(),
        number => number.as_u64(),
    }
}

#[cfg(test)]
mod tests;
