//! `invalid_trace_id`: one word for every signal, or one for each. Written back as a word where one says it all.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, IntoDeserializer},
};

/// What is done with records whose trace ID no backend can hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InvalidIdsBySignal {
    /// With spans.
    pub traces: InvalidIds,
    /// With log records; many have no trace ID, and need none.
    pub logs: InvalidIds,
}

/// What is done with such records of one signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InvalidIds {
    /// They are sent on, and a backend's refusal comes back.
    #[default]
    Forward,
    /// They are refused at the door with `partial_success`.
    Reject,
}

/// As it is written with one word for each signal.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    traces: InvalidIds,
    logs: InvalidIds,
}

struct WordOrWords;

impl Serialize for InvalidIdsBySignal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { traces, logs } = *self;
        if traces == logs { traces.serialize(serializer) } else { Written { traces, logs }.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for InvalidIdsBySignal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WordOrWords)
    }
}

impl<'de> de::Visitor<'de> for WordOrWords {
    type Value = InvalidIdsBySignal;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("forward, reject, or one of them for each signal: { traces: reject, logs: forward }")
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<InvalidIdsBySignal, E> {
        let of_all = InvalidIds::deserialize(word.into_deserializer())?;
        Ok(InvalidIdsBySignal { traces: of_all, logs: of_all })
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<InvalidIdsBySignal, A::Error> {
        let Written { traces, logs } = Written::deserialize(de::value::MapAccessDeserializer::new(map))?;
        Ok(InvalidIdsBySignal { traces, logs })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Draft,
        layout::{InvalidIds, InvalidIdsBySignal},
    };

    /// What a file with `value` says, and how it is printed.
    fn read(value: &str) -> Result<(InvalidIdsBySignal, String), String> {
        let text = format!(
            "pools: {{ a: {{ resolver: {{ static: {{ hostnames: [b] }} }} }} }}\n\
             routes: [{{ signals: [traces, logs], pool: a }}]\ninvalid_trace_id: {value}\n"
        );
        let draft =
            Draft::parse("spanring.yaml", &text, &|_| Some("reject".to_owned())).map_err(|error| error.to_string())?;
        let printed = draft.print().map_err(|error| error.to_string())?;
        let at = printed.find("invalid_trace_id:").ok_or("not printed")?;
        let section = printed.get(at..).unwrap_or_default().split("\nmemory_limiter").next().unwrap_or_default();
        Ok((draft.layout.invalid_trace_id, section.split_whitespace().collect::<Vec<_>>().join(" ")))
    }

    #[test]
    fn one_word_is_for_all_signals_and_a_map_has_one_for_each() {
        use InvalidIds::{Forward, Reject};
        for (value, traces, logs, printed) in [
            ("reject", Reject, Reject, "reject"),
            ("${env:WORD}", Reject, Reject, "reject"),
            ("{ traces: reject, logs: forward }", Reject, Forward, "traces: reject logs: forward"),
            ("{ logs: reject }", Forward, Reject, "traces: forward logs: reject"),
            ("{ logs: reject, traces: \"${env:WORD}\" }", Reject, Reject, "reject"),
            ("{}", Forward, Forward, "forward"),
        ] {
            let expected = (InvalidIdsBySignal { traces, logs }, format!("invalid_trace_id: {printed}"));
            assert_eq!(read(value), Ok(expected), "{value}");
        }
    }

    #[test]
    fn what_it_cannot_be_is_said_with_its_place() {
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
