//! The search list: decides which of the candidate names for a configured name are asked for, and which one is kept.
//!
//! As in glibc and Go, the candidates are asked for in order until one has a record; a failure does not end the
//! search. When none has a record, the worst answer is reported, since a name whose server fails may well exist.
//!
//! Unlike there, a candidate that had records is kept, so that a pool does not change over to a name in another
//! domain because its own fails for a moment. It is given up when it did not exist or had no record in
//! [`GIVEN_UP_AFTER`] consecutive rounds and another candidate has records. Earlier candidates that failed when it
//! was found may be the intended name. They are asked for as well, and the first of them that has records replaces
//! it.

use futures_util::future::join_all;
use hickory_resolver::proto::rr::Name;

use super::{
    answer::{Answers, Question},
    system::System,
};

/// The number of consecutive rounds in which the kept name must be absent before other candidates are tried. It is a
/// minute at the default interval, so that a Service that is scaled to zero or created anew keeps its name.
pub(super) const GIVEN_UP_AFTER: u32 = 12;

/// The state of the search for one configured name.
#[derive(Debug)]
pub(super) struct Search {
    hostname: String,
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    name: Name,
    /// Earlier candidates that failed when this name was found.
    doubtful: Vec<Name>,
    /// The number of consecutive rounds in which the name did not exist or had no record.
    gone: u32,
}

impl Search {
    pub(super) fn new(hostname: &str) -> Self {
        Self { hostname: hostname.to_owned(), kept: None }
    }

    pub(super) fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Asks once: looks into the hosts file, then asks for the kept name or, if there is none, for all candidates.
    ///
    /// Takes at most the timeout for each name. Cancel safety: only the questions are lost.
    pub(super) async fn ask(&mut self, system: &System, question: impl Into<Question>) -> Answers {
        let question = question.into();
        if let Some(answers) = question.family().and_then(|family| system.in_hosts(&self.hostname, family)) {
            return answers;
        }
        let candidates = system.candidates(&self.hostname);
        // The search list may have changed so that the kept name is no longer a candidate.
        self.kept = self.kept.take().filter(|kept| candidates.contains(&kept.name));
        match &mut self.kept {
            Some(kept) => {
                let answers = kept.ask(system, question).await;
                if kept.gone < GIVEN_UP_AFTER {
                    return answers;
                }
                let elsewhere = self.walk(&candidates, system, question).await;
                if elsewhere.has_records() { elsewhere } else { answers }
            }
            None => self.walk(&candidates, system, question).await,
        }
    }

    /// Asks for the candidates in order until one has a record, and keeps that one.
    async fn walk(&mut self, candidates: &[Name], system: &System, question: Question) -> Answers {
        let mut worst: Option<Answers> = None;
        let mut doubtful = Vec::new();
        for name in candidates {
            let answers = system.ask_about(name, question).await;
            if answers.has_records() {
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
        worst.unwrap_or_else(|| Answers::no_such_name(&self.hostname, question))
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
    async fn ask(&mut self, system: &System, question: Question) -> Answers {
        let names = std::iter::once(&self.name).chain(&self.doubtful);
        let mut all = join_all(names.map(|name| system.ask_about(name, question))).await;
        let earlier = all.split_off(1);
        let found = earlier.iter().position(Answers::has_records);
        if let Some((at, answers)) = found.and_then(|at| Some((at, earlier.get(at)?.clone()))) {
            let name = self.doubtful.swap_remove(at);
            tracing::warn!(from = %self.name, to = %name, "an earlier name of the search list answers again and is used");
            *self = Self { name, doubtful: Vec::new(), gone: 0 };
            return answers;
        }
        // An earlier candidate that now has a definite answer is not asked for any more.
        let mut fails = earlier.iter().map(Answers::is_failure);
        self.doubtful.retain(|_| fails.next().unwrap_or(true));
        let answers = all.pop().unwrap_or_else(|| Answers::no_such_name("", question));
        let gone = !answers.has_records() && !answers.is_failure();
        self.gone = if gone { self.gone.saturating_add(1) } else { 0 };
        answers
    }
}
