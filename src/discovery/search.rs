//! The search list: which of the names that it makes of one is asked for, and which is kept to.
//!
//! As in glibc and Go the names are asked for in their order until one has an address; one that fails does not end the
//! search. When none has any, the worst that was said counts: a name whose server fails may well exist.
//!
//! Other than there, a name that had addresses is kept to, so that a pool does not move to another domain's name because
//! its own fails for a moment. It is given up when it was said not to exist, or to have no address, in
//! [`GIVEN_UP_AFTER`] rounds in a row and another name of the list has some. Names before it that failed when it was found
//! may be what was meant: they are asked for along with it, and the first of them that has addresses takes its place.

use futures_util::future::join_all;
use hickory_resolver::proto::rr::Name;

use super::{IpFamily, answer::Answers, system::System};

/// Rounds in a row in which a name must be said to be gone before the search goes past it. A minute at the default
/// interval: a Service that is scaled to nothing, or created anew, comes back to its own name.
pub(super) const GIVEN_UP_AFTER: u32 = 12;

/// The search for one configured name.
#[derive(Debug)]
pub(super) struct Search {
    hostname: String,
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    name: Name,
    /// Names before it that failed when it was found.
    doubtful: Vec<Name>,
    /// Rounds in a row in which it was said to be gone.
    gone: u32,
}

impl Search {
    pub(super) fn new(hostname: &str) -> Self {
        Self { hostname: hostname.to_owned(), kept: None }
    }

    pub(super) fn hostname(&self) -> &str {
        &self.hostname
    }

    /// One round: the hosts file, the name that is kept to, or the list.
    ///
    /// Takes at most the timeout for each of the names. Cancel safety: nothing but the questions is lost.
    pub(super) async fn ask(&mut self, system: &System, family: IpFamily) -> Answers {
        if let Some(answers) = system.in_hosts(&self.hostname, family) {
            return answers;
        }
        let candidates = system.candidates(&self.hostname);
        // A changed list can have lost it.
        self.kept = self.kept.take().filter(|kept| candidates.contains(&kept.name));
        match &mut self.kept {
            Some(kept) => {
                let answers = kept.ask(system, family).await;
                if kept.gone < GIVEN_UP_AFTER {
                    return answers;
                }
                let elsewhere = self.walk(&candidates, system, family).await;
                if elsewhere.has_addresses() { elsewhere } else { answers }
            }
            None => self.walk(&candidates, system, family).await,
        }
    }

    /// Asks for all names in their order until one has an address, which is kept to from then on.
    async fn walk(&mut self, candidates: &[Name], system: &System, family: IpFamily) -> Answers {
        let mut worst: Option<Answers> = None;
        let mut doubtful = Vec::new();
        for name in candidates {
            let answers = system.ask_both(name, family).await;
            if answers.has_addresses() {
                self.keep_to(name, doubtful);
                return answers;
            }
            if answers.is_failure() {
                doubtful.push(name.clone());
            }
            if worst.as_ref().is_none_or(|worst| answers.badness() > worst.badness()) {
                worst = Some(answers);
            }
        }
        worst.unwrap_or_else(|| Answers::no_such_name(&self.hostname, family))
    }

    fn keep_to(&mut self, name: &Name, doubtful: Vec<Name>) {
        let hostname = &self.hostname;
        match &self.kept {
            Some(before) if before.name != *name => {
                tracing::warn!(hostname, from = %before.name, to = %name, "the name is gone; another of the search list is used");
            }
            _ if !doubtful.is_empty() => {
                let failing: Vec<String> = doubtful.iter().map(ToString::to_string).collect();
                tracing::warn!(hostname, ?failing, used = %name, "part of the search list fails; a later name is used");
            }
            _ => {}
        }
        self.kept = Some(Kept { name: name.clone(), doubtful, gone: 0 });
    }
}

impl Kept {
    async fn ask(&mut self, system: &System, family: IpFamily) -> Answers {
        let names = std::iter::once(&self.name).chain(&self.doubtful);
        let mut all = join_all(names.map(|name| system.ask_both(name, family))).await;
        let earlier = all.split_off(1);
        let found = earlier.iter().position(Answers::has_addresses);
        if let Some((at, answers)) = found.and_then(|at| Some((at, earlier.get(at)?.clone()))) {
            let name = self.doubtful.swap_remove(at);
            tracing::warn!(from = %self.name, to = %name, "an earlier name of the search list answers again and is used");
            *self = Self { name, doubtful: Vec::new(), gone: 0 };
            return answers;
        }
        // What is said not to exist is in doubt no longer.
        let mut fails = earlier.iter().map(Answers::is_failure);
        self.doubtful.retain(|_| fails.next().unwrap_or(true));
        let answers = all.pop().unwrap_or_else(|| Answers::no_such_name("", family));
        let gone = !answers.has_addresses() && !answers.is_failure();
        self.gone = if gone { self.gone.saturating_add(1) } else { 0 };
        answers
    }
}
