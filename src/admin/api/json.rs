//! The messages as JSON: parses queries, writes answers and errors. GET only; nothing is kept between requests.

use std::collections::BTreeMap;

use http::StatusCode;
use prost_types::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::json;

use super::{
    super::{
        Answer, State,
        pb::v1::{self, LookupRequest},
    },
    AskError, VERSION,
};

/// Prefix of every path whose answers are JSON.
pub(in super::super) const PREFIX: &str = "/api/";

const CONTENT_TYPE: &str = "application/json";

/// Limit of a query's length in bytes: ten times what a look-up needs.
const MAX_QUERY: usize = 1024;

/// A query's keys and values; each key occurs once.
struct Query(BTreeMap<String, String>);

pub(in super::super) fn ring(state: &State, query: Option<&str>) -> Answer {
    let of = |query: Query| super::ring(&state.pools.current(), query.get("pool"));
    answer(Query::parse(query, &["pool"]).and_then(of))
}

pub(in super::super) fn backends(state: &State, query: Option<&str>) -> Answer {
    let of = |query: Query| super::backends(&state.pools.current(), query.get("pool"));
    answer(Query::parse(query, &["pool"]).and_then(of))
}

pub(in super::super) fn changes(state: &State, query: Option<&str>) -> Answer {
    let of = |query: Query| super::changes(&state.pools.current(), query.get("pool"));
    answer(Query::parse(query, &["pool"]).and_then(of))
}

pub(in super::super) fn lookup(state: &State, query: Option<&str>) -> Answer {
    let of = |query: Query| {
        let [trace_id, pool, signal] = ["trace_id", "pool", "signal"].map(|key| query.get(key).to_owned());
        super::lookup(&state.pools.current(), &LookupRequest { trace_id, pool, signal })
    };
    answer(Query::parse(query, &["trace_id", "pool", "signal"]).and_then(of))
}

/// Builds an error response; all of them have this shape.
pub(in super::super) fn error(status: StatusCode, code: &str, message: &str) -> Answer {
    let body = json!({ "api_version": VERSION, "error": { "code": code, "message": message } });
    Answer { status, content_type: CONTENT_TYPE, body: format!("{body:#}\n").into() }
}

fn answer(result: Result<impl Serialize, AskError>) -> Answer {
    let error_of = |ask: &AskError| {
        let (status, code) = match ask {
            AskError::Invalid(_) | AskError::TraceId(_) => (StatusCode::BAD_REQUEST, "invalid_argument"),
            AskError::TooLong(_) => (StatusCode::URI_TOO_LONG, "invalid_argument"),
            AskError::NoPool { .. } | AskError::NoRoute { .. } => (StatusCode::NOT_FOUND, "not_found"),
            AskError::NoTable { .. } | AskError::NoRoom => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            AskError::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "resource_exhausted"),
        };
        error(status, code, &ask.to_string())
    };
    let message = match result {
        Ok(message) => message,
        Err(ask) => return error_of(&ask),
    };
    match serde_json::to_string_pretty(&message) {
        Ok(body) => Answer { status: StatusCode::OK, content_type: CONTENT_TYPE, body: (body + "\n").into() },
        Err(fault) => error(StatusCode::INTERNAL_SERVER_ERROR, "internal", &fault.to_string()),
    }
}

// === impl Query ===

impl Query {
    fn parse(query: Option<&str>, keys: &[&str]) -> Result<Self, AskError> {
        let query = query.unwrap_or_default();
        if query.len() > MAX_QUERY {
            return Err(AskError::TooLong(MAX_QUERY));
        }
        let mut pairs = BTreeMap::new();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            if !keys.contains(&&*key) {
                let key = super::shortened(&key);
                return Err(AskError::Invalid(format!("{key:?} can't be asked for here; write {}", keys.join(", "))));
            }
            if pairs.contains_key(&*key) {
                return Err(AskError::Invalid(format!("{key} occurs twice in the query")));
            }
            pairs.insert(key.into_owned(), value.into_owned());
        }
        Ok(Self(pairs))
    }

    fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", |value| value)
    }
}

/// Serialises a state as a word; `null` when unspecified or unknown.
pub(in super::super) fn state<S: Serializer>(state: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    state_word(*state).serialize(serializer)
}

/// Serialises a cause as a word; `null` when unspecified or unknown.
pub(in super::super) fn cause<S: Serializer>(cause: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    cause_word(*cause).serialize(serializer)
}

/// Serialises a time as RFC 3339; `null` when there is none.
pub(in super::super) fn time<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.to_string()).serialize(serializer)
}

/// Returns a state's word: `active`, `draining`, …; `None` when unspecified or unknown.
pub fn state_word(state: i32) -> Option<String> {
    let state = v1::State::try_from(state).ok().filter(|state| *state != v1::State::Unspecified)?;
    state.as_str_name().strip_prefix("STATE_").map(str::to_lowercase)
}

/// Returns a cause's word: `discovery`, `ejection`, …; `None` when unspecified or unknown.
pub fn cause_word(cause: i32) -> Option<String> {
    let cause = v1::Cause::try_from(cause).ok().filter(|cause| *cause != v1::Cause::Unspecified)?;
    cause.as_str_name().strip_prefix("CAUSE_").map(str::to_lowercase)
}
