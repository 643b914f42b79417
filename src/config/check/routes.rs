//! Checks `routes`.

use std::collections::BTreeSet;

use super::{
    super::{RouteConfig, deserializer::unknown_name, message::Message},
    KeyPath, Report,
};
use crate::{
    otlp::Signal,
    settings::{Route, RoutingKey, Settings},
};

/// Checks all routes.
pub(super) fn check(settings: &Settings, report: &mut Report<'_>) -> Vec<RouteConfig> {
    let at = KeyPath::of(&["routes"]);
    if settings.routes.is_empty() {
        let advice = "write routes: [{ signals: [traces], routing_key: trace_id, pool: NAME }]";
        report.error(&at, format!("no route is defined; {advice}"));
    }
    let pools: Vec<&str> = settings.pools.keys().map(String::as_str).collect();
    let mut routed = BTreeSet::new();
    for (index, route) in settings.routes.iter().enumerate() {
        check_route(&at.item(index), route, &pools, &mut routed, report);
    }
    for pool in &pools {
        if !settings.routes.iter().any(|route| route.pool == *pool) {
            let message =
                "no route names this pool, so it gets no records; add a route with its name as pool, or remove it";
            report.warn(&KeyPath::of(&["pools", pool]), message.into());
        }
    }
    let checked = |route: &Route| RouteConfig { signals: route.signals.clone(), pool: route.pool.clone() };
    settings.routes.iter().map(checked).collect()
}

fn check_route(at: &KeyPath, route: &Route, pools: &[&str], routed: &mut BTreeSet<Signal>, report: &mut Report<'_>) {
    if route.routing_key != RoutingKey::TraceId {
        let name = route.routing_key.as_str();
        let message = Message::about(name, |key| format!("{key} is not supported yet; write trace_id"));
        report.error(&at.key("routing_key"), message);
    }
    if route.pool.is_empty() {
        report.error(at, format!("\"pool\" is missing; known pools: {}", pools.join(", ")));
    } else if !pools.contains(&route.pool.as_str()) {
        let hidden = format!("is none of the known pools: {}", pools.join(", "));
        report.error(&at.key("pool"), Message::both(unknown_name("pool", &route.pool, pools), hidden));
    }
    let signals = at.key("signals");
    if route.signals.is_empty() {
        report.error(&signals, "is empty; write signals: [traces]");
    }
    for signal in &route.signals {
        let name = signal.as_str();
        if signal.record_fields().id == 0 {
            let supported = "routing them is not supported yet, traces and logs are";
            report.error(&signals, format!("{name} have no trace ID; {supported}"));
        }
        if !routed.insert(*signal) {
            report.error(&signals, format!("{name} are in another route already"));
        }
    }
}
