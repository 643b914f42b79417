//! What `validate` would refuse is taken out of what was converted, each with a finding.

use super::{Cost, Note, yaml::Yaml};
use crate::config::{
    self, ConfigError,
    tree::{Node, Step},
};

/// `whole`, without what our own check complains about; an error where that would change what is encrypted.
pub(super) fn made(mut whole: Yaml, notes: &mut Vec<Note>) -> Result<Yaml, ConfigError> {
    // Every round takes something out.
    while whole.at("routes").map_or(0, Yaml::len) > 0 {
        let Ok(text) = whole.print() else { break };
        let problems = config::problems_of(&Node::parse(&text)?);
        let Some(problem) = problems.into_iter().next() else { break };
        let path = problem.path();
        if let Some(pool) = pool_without_backends(&problem) {
            remove_pool(&mut whole, pool);
            let message = format!("the pool is left out: {}", problem.message());
            notes.push(Note { path, line: 0, message, cost: Cost::Data });
            continue;
        }
        if path.contains(".tls") || !remove(&mut whole, &problem) {
            return Err(problem.unplaced());
        }
        let message = format!("is left out, since Spanring would refuse it: {}", problem.message());
        notes.push(Note { path, line: 0, message, cost: Cost::Setting });
    }
    Ok(whole)
}

/// The pool, if the problem is one of who its backends are.
fn pool_without_backends(problem: &ConfigError) -> Option<&str> {
    let [Step::Key(pools), Step::Key(pool), Step::Key(resolver), rest @ ..] = problem.steps() else { return None };
    let can_go = match rest.last() {
        Some(Step::Key(key)) => ["port", "interval", "timeout"].contains(&key.as_str()),
        // One of several.
        Some(Step::Index(_)) => true,
        None => false,
    };
    (pools == "pools" && resolver == "resolver" && !can_go).then_some(pool)
}

/// Takes out a pool and the routes that lead there.
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

/// Takes out what the problem is about, or the nearest thing around it that is there.
fn remove(whole: &mut Yaml, problem: &ConfigError) -> bool {
    let mut path = problem.steps();
    while !path.is_empty() {
        if whole.remove(path) {
            return true;
        }
        path = path.split_last().map_or(&[], |(_, rest)| rest);
    }
    false
}
