//! What is said of values: with what they are, and without, for those that are not to be shown.

use std::fmt::Display;

/// A message in both forms; they are the same where it shows no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// With the values that it is about.
    pub(super) shown: String,
    /// Without them.
    pub(super) hidden: String,
    /// Whether it holds for this machine only: elsewhere the file or name may be there.
    pub(super) is_local: bool,
}

impl Said {
    /// A message with values, and one without.
    pub(super) fn both(shown: impl Into<String>, hidden: impl Into<String>) -> Self {
        Self { shown: shown.into(), hidden: hidden.into(), is_local: false }
    }

    /// The same, for this machine only.
    pub(super) fn local(self) -> Self {
        Self { is_local: true, ..self }
    }

    /// A message about one value, in quotes; where that is not to be shown, `it` stands in its place.
    pub(super) fn of(value: impl Display, message: impl Fn(&str) -> String) -> Self {
        Self::both(message(&format!("\"{value}\"")), message("it"))
    }

    /// `VALUE MESSAGE`, or the message alone.
    pub(super) fn before(value: impl Display, message: impl Display) -> Self {
        Self::both(format!("{value} {message}"), message.to_string())
    }
}

impl From<String> for Said {
    fn from(message: String) -> Self {
        Self::both(message.clone(), message)
    }
}

impl From<&str> for Said {
    fn from(message: &str) -> Self {
        message.to_owned().into()
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Draft;

    fn complaint(text: &str) -> String {
        let environment = |name: &str| (name == "LATE").then(|| "20s".to_owned());
        let text = format!("{text}\nroutes: [{{ signals: [traces], pool: a }}]\n");
        let checked = Draft::parse("f", &text, &environment).and_then(|draft| draft.check());
        checked.expect_err(&text).to_string()
    }

    #[test]
    fn a_timeout_above_the_deadline_is_refused_with_both_keys() {
        let pool = |more: &str| format!("pools: {{ a: {{ resolver: {{ dns: {{ hostname: a }} }}, {more} }} }}");
        assert_eq!(
            complaint(&pool("timeout: 20s")),
            "f:1:60: pools.a.timeout: 20s is longer than receivers.otlp.deadline, 8s: an attempt cannot outlast its \
             request; lower timeout, or raise the deadline"
        );
        // Values that come by a reference are not shown, neither of the two.
        assert_eq!(
            complaint(&pool("timeout: \"${env:LATE}\"")),
            "f:1:60: pools.a.timeout: is longer than receivers.otlp.deadline: an attempt cannot outlast its request; \
             lower timeout, or raise the deadline"
        );
        let deadline = "receivers: { otlp: { deadline: 3s } }\n";
        let hidden = "receivers: { otlp: { deadline: \"${env:SHORT:-3s}\" } }\n";
        assert!(complaint(&format!("{deadline}{}", pool("timeout: 5s"))).contains("receivers.otlp.deadline, 3s"));
        assert!(!complaint(&format!("{hidden}{}", pool("timeout: 5s"))).contains("3s"));
    }

    #[test]
    fn a_timeout_that_is_not_written_gives_way_to_a_shorter_deadline() {
        let text = "receivers: { otlp: { deadline: 3s } }\npools: { a: { resolver: { dns: { hostname: a } } } }\n\
                    routes: [{ signals: [traces], pool: a }]\n";
        let draft = Draft::parse("f", text, &|_| None).expect("read");
        assert_eq!(draft.check().expect("valid").pools[0].dispatch.keys.timeout.as_secs(), 3);
        assert!(draft.print().expect("printed").contains("    timeout: 3s\n"), "what holds is printed");
    }
}
