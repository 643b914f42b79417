//! Finds the keys that differ between two configurations. Only their paths are reported, not their values.

use serde_json::Value;

use super::node::is_plain_name;
use crate::settings::{Settings, section::Printed};

/// Returns the paths of the keys that differ, in order. For a section that only one of the two has, this is the path of
/// the section. Keys whose difference has no effect are left out.
pub fn changed_keys(before: &Settings, after: &Settings) -> Vec<String> {
    let mut changed = differing(before, after);
    if !changed.is_empty() {
        let in_effect = differing(&before.in_effect(), &after.in_effect());
        changed.retain(|key| in_effect.contains(key));
    }
    changed
}

fn differing(before: &Settings, after: &Settings) -> Vec<String> {
    let mut changed = Vec::new();
    if let (Ok(one), Ok(other)) = (serde_json::to_value(Printed(before)), serde_json::to_value(Printed(after))) {
        walk("", &one, &other, &mut changed);
    }
    for (name, pool) in &before.pools {
        let Some(other) = after.pools.get(name) else { continue };
        // Their values are printed as [REDACTED], so they look the same.
        for (header, value) in &pool.headers.0 {
            if other.headers.0.get(header).is_some_and(|other| other != value) {
                changed.push(below(&below(&below("pools", name), "headers"), header));
            }
        }
    }
    changed
}

fn walk(path: &str, before: &Value, after: &Value, changed: &mut Vec<String>) {
    match (before, after) {
        _ if before == after => {}
        (Value::Object(one), Value::Object(other)) => {
            let gone = one.keys().filter(|key| !other.contains_key(*key));
            for key in gone.chain(other.keys()) {
                let [one, other] = [one, other].map(|map| map.get(key).unwrap_or(&Value::Null));
                walk(&below(path, key), one, other, changed);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() && one.iter().all(Value::is_object) => {
            for (index, (one, other)) in one.iter().zip(other).enumerate() {
                walk(&format!("{path}[{index}]"), one, other, changed);
            }
        }
        _ => changed.push(path.to_owned()),
    }
}

fn below(path: &str, key: &str) -> String {
    let key = if is_plain_name(key) { key } else { "…" };
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Draft;

    fn settings(text: &str) -> Settings {
        Draft::parse("f", text, &|_| None).expect(text).settings
    }

    #[test]
    fn differences_are_named_by_their_paths() {
        let changed = |one: &str, other: &str| changed_keys(&settings(one), &settings(other));
        let pool = |more: &str| format!("pools: {{ a: {{ {more} }} }}");
        assert_eq!(changed(&pool("timeout: 1s"), &pool("timeout: 1s")), [""; 0]);
        assert_eq!(changed(&pool("timeout: 1s"), &pool("timeout: 2s")), ["pools.a.timeout"]);
        assert_eq!(changed("pools: { a: {} }", "pools: { b: {} }"), ["pools.a", "pools.b"]);
        let [one, other] =
            ["[a, b]", "[a, c]"].map(|list| pool(&format!("resolver: {{ static: {{ hostnames: {list} }} }}")));
        assert_eq!(changed(&one, &other), ["pools.a.resolver.static.hostnames"]);
        let routes =
            |pool: &str| format!("routes: [{{ signals: [traces], pool: a }}, {{ signals: [logs], pool: {pool} }}]");
        assert_eq!(changed(&routes("a"), &routes("b")), ["routes[1].pool"]);
        assert_eq!(changed(&routes("a"), "routes: [{ signals: [traces], pool: a }]"), ["routes"]);
        assert_eq!(changed("", "health_check: {}"), ["health_check"]);
        let level = |compression: &str, level: u8| {
            pool(&format!("compression: {compression}, compression_params: {{ level: {level} }}"))
        };
        assert_eq!(changed(&level("none", 1), &level("none", 5)), [""; 0], "the level has no effect");
        assert_eq!(changed(&level("none", 5), &level("gzip", 5)), ["pools.a.compression"], "the level is the same");
        assert_eq!(changed(&level("gzip", 1), &level("gzip", 5)), ["pools.a.compression_params.level"]);
        let limit = |share: u8, more: &str| format!("memory_limiter: {{ limit_percentage: {share}{more} }}");
        assert_eq!(changed(&limit(50, ", limit_mib: 9"), &limit(60, ", limit_mib: 9")), [""; 0], "limit_mib holds");
        assert_eq!(changed(&limit(50, ""), &limit(60, "")), ["memory_limiter.limit_percentage"]);
        let headers = |value: &str| pool(&format!("headers: {{ x-a: {value}, x-b: same }}"));
        assert_eq!(changed(&headers("hunter2"), &headers("hunter3")), ["pools.a.headers.x-a"]);
    }
}
