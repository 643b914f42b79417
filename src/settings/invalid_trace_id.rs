//! The key `invalid_trace_id`: one word for all signals, or one for each signal. It is printed as one word if all
//! signals have the same.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, IntoDeserializer},
};

use super::{
    section::{Setting, section},
    values::as_serde,
};
use crate::otlp::Signal;

/// How to treat records whose trace ID is empty, all zero or of a wrong length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InvalidTraceId {
    /// Forward them; a backend's refusal is returned in `partial_success`.
    #[default]
    Forward,
    /// Reject them without asking a backend, and count them in `partial_success`.
    Reject,
}

as_serde! { InvalidTraceId }

/// The treatment of invalid trace IDs for each signal that is routed by trace ID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InvalidTraceIds {
    /// For spans.
    pub traces: InvalidTraceId,
    /// For log records, where the trace ID is optional; many have none.
    pub logs: InvalidTraceId,
}

section! {
    /// One word for each signal.
    struct BySignal {
        /// For spans.
        traces: InvalidTraceId,
        /// For log records.
        logs: InvalidTraceId,
    }
}

impl InvalidTraceIds {
    /// Returns the treatment for a signal.
    pub fn of(self, signal: Signal) -> InvalidTraceId {
        match signal {
            Signal::Traces => self.traces,
            Signal::Logs => self.logs,
            // These signals have no trace ID.
            Signal::Metrics | Signal::Profiles => InvalidTraceId::Forward,
        }
    }
}

impl Setting for InvalidTraceIds {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(WordOrSection)
    }

    fn print<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { traces, logs } = *self;
        if traces == logs { traces.print(to) } else { BySignal { traces, logs }.print(to) }
    }
}

struct WordOrSection;

impl<'de> de::Visitor<'de> for WordOrSection {
    type Value = InvalidTraceIds;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("forward, reject, or one of them for each signal: { traces: reject, logs: forward }")
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<InvalidTraceIds, E> {
        let of_all = InvalidTraceId::deserialize(word.into_deserializer())?;
        Ok(InvalidTraceIds { traces: of_all, logs: of_all })
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<InvalidTraceIds, A::Error> {
        let BySignal { traces, logs } = BySignal::read(de::value::MapAccessDeserializer::new(map))?;
        Ok(InvalidTraceIds { traces, logs })
    }
}

#[cfg(test)]
mod tests {
    use super::{InvalidTraceId, InvalidTraceIds, Signal};
    use crate::config::Draft;

    /// Reads a file with `value`. Returns the setting and its printed form.
    fn read(value: &str) -> Result<(InvalidTraceIds, String), String> {
        let text = format!(
            "pools: {{ a: {{ resolver: {{ static: {{ hostnames: [b] }} }} }} }}\n\
             routes: [{{ signals: [traces, logs], pool: a }}]\ninvalid_trace_id: {value}\n"
        );
        let draft =
            Draft::parse("spanring.yaml", &text, &|_| Some("reject".to_owned())).map_err(|error| error.to_string())?;
        let printed = draft.print().map_err(|error| error.to_string())?;
        let at = printed.find("invalid_trace_id:").ok_or("not printed")?;
        let section = printed.get(at..).unwrap_or_default().split("\nmemory_limiter").next().unwrap_or_default();
        Ok((draft.settings.invalid_trace_id, section.split_whitespace().collect::<Vec<_>>().join(" ")))
    }

    #[test]
    fn each_signal_has_its_own_treatment_of_invalid_ids() {
        use InvalidTraceId::{Forward, Reject};
        for (traces, logs) in [(Forward, Reject), (Reject, Forward), (Reject, Reject), (Forward, Forward)] {
            let policy = InvalidTraceIds { traces, logs };
            let all = [Signal::Traces, Signal::Logs, Signal::Metrics, Signal::Profiles].map(|signal| policy.of(signal));
            assert_eq!(all, [traces, logs, Forward, Forward]);
        }
    }

    #[test]
    fn one_word_applies_to_all_signals_and_a_map_to_each() {
        use InvalidTraceId::{Forward, Reject};
        for (value, traces, logs, printed) in [
            ("reject", Reject, Reject, "reject"),
            ("${env:WORD}", Reject, Reject, "reject"),
            ("{ traces: reject, logs: forward }", Reject, Forward, "traces: reject logs: forward"),
            ("{ logs: reject }", Forward, Reject, "traces: forward logs: reject"),
            ("{ logs: reject, traces: \"${env:WORD}\" }", Reject, Reject, "reject"),
            ("{}", Forward, Forward, "forward"),
        ] {
            let expected = (InvalidTraceIds { traces, logs }, format!("invalid_trace_id: {printed}"));
            assert_eq!(read(value), Ok(expected), "{value}");
        }
    }

    #[test]
    fn the_error_for_an_invalid_value_has_its_position() {
        for (value, said) in [
            ("rejects", "spanring.yaml:3:19: invalid_trace_id: unknown value \"rejects\", did you mean \"reject\"?"),
            (
                "no",
                "expected forward, reject, or one of them for each signal: { traces: reject, logs: forward }, found",
            ),
            (
                "{ metrics: reject }",
                "spanring.yaml:3:21: invalid_trace_id: unknown key \"metrics\"; known keys: traces, logs",
            ),
            (
                "{ logs: drop }",
                "spanring.yaml:3:27: invalid_trace_id.logs: unknown value \"drop\"; known values: forward",
            ),
        ] {
            let complaint = read(value).expect_err(value);
            assert!(complaint.contains(said), "{value}: {complaint}");
        }
    }
}
