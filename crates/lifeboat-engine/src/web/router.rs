//! Which path has what, and who may ask.
//!
//! Every answer goes through [`guard`]: only `GET` and `HEAD`, only for a name that is ours, and never without the headers that keep a page from
//! being framed, kept or read by another one.

use std::net::IpAddr;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use jiff::Timestamp;
use lifeboat_core::drill::DrillId;
use lifeboat_core::status::Status;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::api::{self, BackupsQuery, PageQuery};
use super::page::{self, BackupsPage, ListPage, Overview, View, icon};
use super::{DrillPageError, HANDLER_SECONDS, Source};

/// Pages of drills are read by so many at once: each may wait for a store.
const MAX_DRILL_READS: usize = 4;
/// A page of a drill is there after this, or is not shown.
const DRILL_PATIENCE: Duration = Duration::from_secs(12);

/// Whose requests are answered, by the name that they ask for.
///
/// A page from elsewhere can make a browser ask this address under its own name (DNS rebinding), and would then read the answer. Whoever listens
/// on loopback trusts that only this host can ask, so it answers to names that no page from elsewhere has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guests {
    names: Option<Vec<String>>,
}

impl Guests {
    /// For a server that listens there: on loopback, or where names are given, only these names, addresses and `localhost`.
    pub fn of(listens: IpAddr, names: &[String]) -> Self {
        let names = names.iter().map(|name| name.trim_end_matches('.').to_ascii_lowercase()).collect::<Vec<_>>();
        Self { names: (listens.is_loopback() || !names.is_empty()).then_some(names) }
    }

    /// Whether this `Host` (name or address, with or without a port) is one of ours.
    pub fn knows(&self, host: &str) -> bool {
        let Some(names) = &self.names else { return true };
        let (name, port) = match host.strip_prefix('[') {
            // [::1]:8080
            Some(rest) => match rest.split_once(']') {
                Some((name, port)) => (name, port.strip_prefix(':').or(port.is_empty().then_some("0"))),
                None => return false,
            },
            None => match host.split_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (host, Some("0")),
            },
        };
        if port.is_none_or(|port| port.parse::<u16>().is_err()) {
            return false;
        }
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        // A browser never sends an address that a name was rebound to, only the name.
        name.parse::<IpAddr>().is_ok() || name == "localhost" || name.ends_with(".localhost") || names.contains(&name)
    }
}

/// Below it, errors are for programs.
const API: &str = "/api/";

#[derive(Clone)]
struct Shared {
    source: Arc<dyn Source>,
    guests: Guests,
    drill_reads: Arc<Semaphore>,
}

/// Every path.
pub fn router(source: Arc<dyn Source>, guests: Guests) -> Router {
    let shared = Shared { source, guests, drill_reads: Arc::new(Semaphore::new(MAX_DRILL_READS)) };
    Router::new()
        .route("/", get(overview))
        .route("/backups", get(backups))
        .route("/drills", get(drills))
        .route("/drills/{id}", get(drill))
        .route("/alerts", get(alerts))
        .route("/icon/{name}", get(picture))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(api_status))
        .route("/api/v1/backups", get(api_backups))
        .route("/api/v1/drills", get(api_drills))
        .route("/api/v1/alerts", get(api_alerts))
        .route("/api/v1/wal", get(api_wal))
        .route("/api/v1/tasks", get(api_tasks))
        .fallback(nothing_here)
        .layer(axum::middleware::from_fn_with_state(shared.clone(), guard))
        .with_state(shared)
}

async fn guard(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let mut answer = match refusal(&shared.guests, &request) {
        Some(refusal) => refusal,
        None => match tokio::time::timeout(HANDLER_SECONDS, next.run(request)).await {
            Ok(answer) => answer,
            Err(_) => error(&path, StatusCode::GATEWAY_TIMEOUT, "that took too long", "try again"),
        },
    };
    let headers = answer.headers_mut();
    let mut set = |name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    set(header::CONTENT_SECURITY_POLICY, "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::X_FRAME_OPTIONS, "DENY");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::CACHE_CONTROL, "no-store");
    set(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    answer
}

/// Why a request is not even looked at.
fn refusal(guests: &Guests, request: &Request) -> Option<Response> {
    let path = request.uri().path();
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok());
    let named = request.uri().authority().map(|authority| authority.as_str());
    if hosts.next().is_some() || host.is_none_or(|host| !guests.knows(host)) || named.is_some_and(|named| !guests.knows(named)) {
        let hint = "ask for it by an address or as localhost, or add the name to agent.allow_hosts";
        return Some(error(path, StatusCode::MISDIRECTED_REQUEST, "this name is not one of this server", hint));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = error(path, StatusCode::METHOD_NOT_ALLOWED, "this is read only", "GET and HEAD are all there is");
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(answer);
    }
    None
}

/// An error: for programs below `/api`, for people elsewhere.
fn error(path: &str, status: StatusCode, message: &str, hint: &str) -> Response {
    if path.starts_with(API) {
        return json(status, &api::Failed::new(message, hint));
    }
    html(status, page::error(status.as_u16(), message, hint))
}

fn json(status: StatusCode, document: &impl Serialize) -> Response {
    match serde_json::to_vec(document) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            (status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response()
        }
        // No type of ours fails to serialise; a map with other keys than texts would.
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn html(status: StatusCode, page: String) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, page::policy())];
    (status, headers, page).into_response()
}

fn text(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

async fn nothing_here(uri: Uri) -> Response {
    error(uri.path(), StatusCode::NOT_FOUND, "there is nothing here", "/ has the status, /api/v1/status the same for programs")
}

/// The answer to these parameters, or what is wrong with them.
fn with<T>(path: &str, query: Result<Query<T>, QueryRejection>, answer: impl FnOnce(T) -> Response) -> Response {
    match query {
        Ok(Query(query)) => answer(query),
        Err(rejection) => {
            let message = format!("these parameters are not understood: {}", rejection.body_text());
            error(path, StatusCode::BAD_REQUEST, &message, "docs/status.md says which there are")
        }
    }
}

/// A page over what is known now.
fn shown(shared: &Shared, draw: impl FnOnce(&View<'_>) -> String) -> Response {
    let (status, agent) = (shared.source.status(), shared.source.agent());
    let view = View { status: status.as_deref(), agent: &agent, now: Timestamp::now() };
    html(StatusCode::OK, draw(&view))
}

async fn overview(State(shared): State<Shared>, query: Result<Query<Overview>, QueryRejection>) -> Response {
    with("/", query, |query| shown(&shared, |view| page::overview(view, &query)))
}

async fn backups(State(shared): State<Shared>, query: Result<Query<BackupsPage>, QueryRejection>) -> Response {
    with("/backups", query, |query| shown(&shared, |view| page::backups(view, &query)))
}

async fn drills(State(shared): State<Shared>, query: Result<Query<ListPage>, QueryRejection>) -> Response {
    with("/drills", query, |query| shown(&shared, |view| page::drills(view, &query)))
}

async fn alerts(State(shared): State<Shared>, query: Result<Query<ListPage>, QueryRejection>) -> Response {
    with("/alerts", query, |query| shown(&shared, |view| page::alerts(view, &query)))
}

async fn picture(name: Result<Path<String>, PathRejection>, uri: Uri) -> Response {
    match name.ok().and_then(|Path(name)| icon(&name)) {
        Some(svg) => ([(header::CONTENT_TYPE, "image/svg+xml")], svg).into_response(),
        None => nothing_here(uri).await,
    }
}

async fn drill(State(shared): State<Shared>, id: Result<Path<String>, PathRejection>, uri: Uri) -> Response {
    // What is no UTF-8 is no id either.
    let Some(id) = id.ok().and_then(|Path(id)| DrillId::from_str(&id).ok()) else { return nothing_here(uri).await };
    let refuse = |status, message: &str, hint: &str| error("/drills", status, message, hint);
    let command = format!("lifeboat drill show {id}");
    let Ok(permit) = shared.drill_reads.clone().try_acquire_owned() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "other pages of drills are being read", "try again in some seconds");
    };
    let source = shared.source.clone();
    let read = tokio::task::spawn_blocking(move || {
        let page = source.drill_page(&id);
        // Not before it is read: one that hangs counts as long as it does.
        drop(permit);
        page
    });
    match tokio::time::timeout(DRILL_PATIENCE, read).await {
        Ok(Ok(Ok(page))) => {
            // It says itself which style is its own, and its word and this one hold together. In a sandbox it is of no origin and runs nothing.
            let policy =
                "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox";
            ([(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, policy)], Body::from(page))
                .into_response()
        }
        Ok(Ok(Err(failure))) => {
            let status = match failure {
                DrillPageError::Missing => StatusCode::NOT_FOUND,
                DrillPageError::NotProven(_) | DrillPageError::Trouble(_) => StatusCode::BAD_GATEWAY,
            };
            refuse(status, &failure.to_string(), &command)
        }
        Ok(Err(_)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "reading the page of this drill ended in a bug", &command),
        Err(_) => refuse(StatusCode::GATEWAY_TIMEOUT, "the repository did not answer in time", &command),
    }
}

async fn healthz(State(shared): State<Shared>) -> Response {
    if shared.source.live() { text(StatusCode::OK, "ok\n".into()) } else { text(StatusCode::SERVICE_UNAVAILABLE, "not alive\n".into()) }
}

async fn readyz(State(shared): State<Shared>) -> Response {
    match shared.source.ready() {
        Ok(()) => text(StatusCode::OK, "ready\n".into()),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", lifeboat_core::plain::plain(&why))),
    }
}

async fn metrics(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    let accepted: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let open_metrics = wants_open_metrics(&accepted.join(","));
    let kind = if open_metrics {
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    } else {
        "text/plain; version=0.0.4; charset=utf-8"
    };
    match shared.source.metrics(open_metrics) {
        Some(metrics) => ([(header::CONTENT_TYPE, kind), (header::VARY, "accept")], metrics).into_response(),
        None => text(StatusCode::SERVICE_UNAVAILABLE, "there are no metrics yet\n".into()),
    }
}

/// Whether somebody who accepts this would rather have OpenMetrics than plain text.
fn wants_open_metrics(accept: &str) -> bool {
    let weight = |wanted: &[&str]| {
        let of = |entry: &str| {
            let mut parts = entry.split(';').map(str::trim);
            let kind = parts.next()?.to_ascii_lowercase();
            let q = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse::<f32>().ok());
            wanted.contains(&kind.as_str()).then_some(q.filter(|q| (0.0..=1.0).contains(q)).unwrap_or(0.0))
        };
        accept.split(',').filter_map(of).fold(0.0, f32::max)
    };
    let open = weight(&["application/openmetrics-text"]);
    open > 0.0 && open >= weight(&["text/plain"])
}

/// A document over what is known now.
fn document(shared: &Shared, of: impl FnOnce(&Status) -> Response) -> Response {
    match shared.source.status() {
        Some(status) => of(&status),
        None => {
            let why = shared.source.agent().trouble.unwrap_or_else(|| "the agent has only begun to look".to_owned());
            error(API, StatusCode::SERVICE_UNAVAILABLE, &format!("nothing was seen yet: {why}"), "lifeboat status looks by itself")
        }
    }
}

async fn api_status(State(shared): State<Shared>) -> Response {
    let agent = shared.source.agent();
    document(&shared, |status| json(StatusCode::OK, &api::status(status, &agent, Timestamp::now())))
}

async fn api_backups(State(shared): State<Shared>, query: Result<Query<BackupsQuery>, QueryRejection>) -> Response {
    with(API, query, |query| document(&shared, |status| json(StatusCode::OK, &api::backups(status, &query))))
}

async fn api_drills(State(shared): State<Shared>, query: Result<Query<PageQuery>, QueryRejection>) -> Response {
    with(API, query, |query| document(&shared, |status| json(StatusCode::OK, &api::drills(status, &query))))
}

async fn api_alerts(State(shared): State<Shared>, query: Result<Query<PageQuery>, QueryRejection>) -> Response {
    with(API, query, |query| document(&shared, |status| json(StatusCode::OK, &api::alerts(status, &query))))
}

async fn api_wal(State(shared): State<Shared>) -> Response {
    document(&shared, |status| json(StatusCode::OK, &api::wal(status)))
}

async fn api_tasks(State(shared): State<Shared>) -> Response {
    document(&shared, |status| json(StatusCode::OK, &api::tasks(status)))
}

#[cfg(test)]
mod tests;
