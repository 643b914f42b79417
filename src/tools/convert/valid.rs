//! Removes from the converted configuration what `validate` would refuse, and adds a finding for each removal.

use super::{Cost, Note, origin::Origins, yaml::Yaml};
use crate::config::{
    self, ConfigError,
    node::{Node, Step},
};

/// Returns `whole` without the parts that our own check refuses. Returns an error if removing a part would change what
/// is encrypted or who is trusted. Findings and errors refer to lines of `file`, the Collector's configuration.
pub(super) fn remove_refused(
    mut whole: Yaml,
    origins: &Origins,
    file: &Node,
    notes: &mut Vec<Note>,
) -> Result<Yaml, ConfigError> {
    // Every iteration removes something, so the loop ends.
    while whole.at("routes").map_or(0, Yaml::len) > 0 {
        let Ok(text) = whole.print() else { break };
        let problems = config::problems_of(&Node::parse(&text)?);
        let Some(problem) = problems.into_iter().next() else { break };
        let (steps, said) = (problem.steps(), problem.message());
        let origin = |steps: &[Step]| origins.of(steps, whole.get(steps), file);
        if let Some((pool, steps)) = pool_without_backends(steps, &whole) {
            let said = match said.split_once("; ") {
                _ if steps.len() == 3 => "names none of static, dns, k8s and aws_cloud_map",
                // The rest of the message names one of our keys; the Collector's key may be another.
                Some((missing @ "is missing", _)) => missing,
                _ => said,
            };
            notes.push(origin(&steps).note(&format!("{said}; the pool is left out"), Cost::Data));
            remove_pool(&mut whole, &pool);
            continue;
        }
        let origin = origin(steps);
        let (is_gone, so, cost) = match tls_key(steps) {
            Some(key) => match can_go(key) {
                Some((so, cost)) => (whole.remove(steps), so, cost),
                None => (false, "", Cost::Data),
            },
            None => (remove(&mut whole, steps), "", cost(steps)),
        };
        if !is_gone {
            let so = "nothing is converted, since leaving it out would change what is encrypted or who is trusted";
            return Err(origin.error(&format!("{said}; {so}")));
        }
        notes.push(origin.note(&format!("is left out, since Spanring would refuse it: {said}{so}"), cost));
    }
    Ok(whole)
}

/// If the problem is that a pool has no usable backends, returns the name of the pool and the path to report.
fn pool_without_backends(steps: &[Step], whole: &Yaml) -> Option<(String, Vec<Step>)> {
    let [Step::Key(pools), Step::Key(pool), Step::Key(section), rest @ ..] = steps else { return None };
    if pools != "pools" {
        return None;
    }
    // Without `server_name_override`, certificates are verified against the DNS name that is looked up, so report that
    // name.
    if tls_key(steps) == Some("server_name_override") && whole.get(steps).is_none() {
        let path = ["pools", pool, "resolver", "dns", "hostname"];
        return Some((pool.clone(), path.map(|key| Step::Key(key.to_owned())).to_vec()));
    }
    let can_go = match rest.last() {
        Some(Step::Key(key)) => ["port", "interval", "timeout"].contains(&key.as_str()),
        // One of several host names.
        Some(Step::Index(_)) => true,
        None => false,
    };
    (section == "resolver" && !can_go).then(|| (pool.clone(), steps.to_vec()))
}

/// Returns the key of a `tls` section that the problem is about, or an empty text for the section itself.
fn tls_key(steps: &[Step]) -> Option<&str> {
    let keys: Vec<&str> = steps.iter().map(|step| if let Step::Key(key) = step { key } else { "" }).collect();
    match keys[..] {
        ["pools", _, "tls", ref rest @ ..] | ["receivers", "otlp", "protocols", "grpc", "tls", ref rest @ ..] => {
            Some(rest.first().copied().unwrap_or_default())
        }
        _ => None,
    }
}

/// If a key of `tls` can be removed without making the configuration less secure, returns the consequence and its cost.
fn can_go(key: &str) -> Option<(&'static str, Cost)> {
    match key {
        "min_version" => Some(("; peers have to speak TLS 1.2 or newer", Cost::Data)),
        "insecure" => Some(("; backends have to speak TLS", Cost::Data)),
        "insecure_skip_verify" => Some(("; certificates of backends are verified", Cost::Data)),
        "server_name_override" => Some(("; certificates of backends have to bear the name that is called", Cost::Data)),
        "reload_interval" => Some(("", Cost::Setting)),
        _ => None,
    }
}

/// Returns the cost of removing a part outside of `tls` sections.
fn cost(steps: &[Step]) -> Cost {
    let is = |at: usize, name: &str| matches!(steps.get(at), Some(Step::Key(key)) if key == name);
    let is_last = |name: &str| is(steps.len().saturating_sub(1), name);
    if is(0, "pools") && is(2, "resolver") && (is(4, "hostnames") || is_last("port")) {
        Cost::Routing
    } else if is(0, "receivers") && is_last("endpoint") {
        Cost::Data
    } else {
        Cost::Setting
    }
}

/// Removes a pool and the routes to it.
fn remove_pool(whole: &mut Yaml, pool: &str) {
    let Yaml::Map(sections) = whole else { return };
    for (name, section) in sections {
        match section {
            Yaml::Map(pools) if name == "pools" => pools.retain(|(name, _)| name != pool),
            Yaml::List(routes) if name == "routes" => {
                routes.retain(|route| route.at("pool") != Some(&Yaml::text(pool)));
            }
            _ => {}
        }
    }
}

/// Removes the value at `path`, or else the nearest existing value that contains it. Removes nothing that contains a
/// `tls` section.
fn remove(whole: &mut Yaml, mut path: &[Step]) -> bool {
    while !path.is_empty() {
        if whole.get(path).is_some_and(|value| value.holds("tls")) {
            return false;
        }
        if whole.remove(path) {
            return true;
        }
        path = path.split_last().map_or(&[], |(_, rest)| rest);
    }
    false
}
