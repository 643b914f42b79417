//! Questions and answers, as JSON and as gRPC, about pools that a test controls.

mod grpc;
mod json;

use serde_json::Value;

use super::*;
use crate::{
    admin::{Hosts, Pools, Readiness, State},
    budget::Budget,
    dispatch::{self, Dispatch},
    lifecycle::Tasks,
    membership::tests::Feed,
    telemetry::Recorder,
};

/// Trace ID 1 in text form.
const TRACE: &str = "00000000000000000000000000000001";

/// The state of an admin listener and the pools behind it.
struct Rig {
    state: State,
    feeds: Vec<Feed>,
    tasks: Tasks,
}

impl Rig {
    /// Creates pools with these names, without tables. The first takes traces and logs, the others no signal.
    fn new(names: &[&str]) -> Self {
        let recorder = Recorder::scoped(Clone::clone);
        let (budget, hosts) = (Budget::new(usize::MAX), Hosts::default());
        let mut rig = Self {
            state: State { recorder, readiness: Readiness::new(), pools: Pools::new(), budget, hosts },
            feeds: Vec::new(),
            tasks: Tasks::new(),
        };
        names.iter().for_each(|name| rig.add(name));
        rig
    }

    /// Creates one pool with three backends.
    async fn of_three() -> Self {
        let mut rig = Self::new(&["tail"]);
        rig.feeds[0].discover(&["a", "b", "c"]).await;
        rig
    }

    fn add(&mut self, name: &str) {
        let feed = Feed::start(name, &self.tasks);
        let tables = feed.published.tables.clone();
        let (config, events) = (dispatch::Config::default(), feed.events.clone());
        let dispatch = Dispatch::start(name, config, tables, &self.tasks, events, Budget::new(1 << 20));
        let signals = if self.feeds.is_empty() { vec![Signal::Traces, Signal::Logs] } else { Vec::new() };
        self.state.pools.insert(name, Pool { signals, membership: feed.published.clone(), dispatch });
        self.feeds.push(feed);
    }

    /// Returns a trace that this backend owns while all are present.
    fn trace_of(&self, backend: &str) -> String {
        let table = self.table();
        let of = |id: u128| table.backends()[table.owner(&id.to_be_bytes()) as usize].identity.to_string();
        format!("{:032x}", (1..).find(|id| of(*id) == backend).expect("an ID"))
    }

    fn table(&self) -> Arc<Table> {
        self.feeds[0].published.tables.borrow().clone().expect("a table")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.tasks.stop();
    }
}

/// Replaces every time in `value` by `TIME` and every duration by 0.
fn timeless(value: Value) -> Value {
    match value {
        Value::String(text) if text.len() >= 20 && text.as_bytes()[10] == b'T' && text.ends_with('Z') => "TIME".into(),
        Value::Array(values) => values.into_iter().map(timeless).collect(),
        Value::Object(fields) => {
            let field = |(key, value): (String, Value)| match &key {
                key if key == "build_seconds" => (key.clone(), 0.into()),
                _ => (key, timeless(value)),
            };
            fields.into_iter().map(field).collect()
        }
        other => other,
    }
}
