//! Why a document could not be converted, and where.

use std::fmt;

use thiserror::Error;

/// The most bytes of a field path in an error. Of a longer one, the middle is left out.
const MAX_PATH: usize = 160;

/// A document that could not be converted.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{kind} at line {line}, column {column}{}", In(path))]
pub struct JsonError {
    /// What is wrong.
    pub kind: JsonErrorKind,
    /// The line of the first character that is wrong, from 1 on.
    pub line: usize,
    /// Its column in characters, from 1 on.
    pub column: usize,
    /// The field that was being read, such as `resourceSpans[0].scopeSpans[2].spans[17].kind`; empty at the top.
    pub path: String,
}

/// What is wrong with a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JsonErrorKind {
    /// It is no JSON, or not the JSON of this message. The sender is at fault.
    #[error("malformed JSON: {0}")]
    Malformed(Malformed),
    /// The protobuf message would be longer than the limit, which is this many bytes.
    #[error("the message is larger than {0} bytes")]
    TooLarge(usize),
    /// The budget has no room. The document is not at fault. So far, the request takes this many bytes.
    #[error("no memory for a request of {0} bytes")]
    NoRoom(usize),
}

/// How a document is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// It ends inside a value, or is empty.
    #[error("the document ends too early")]
    Truncated,
    /// Something follows the value.
    #[error("something follows the document")]
    Trailing,
    /// It is not encoded in UTF-8.
    #[error("the document is not UTF-8")]
    Utf8,
    /// There is another character than JSON or OTLP has here.
    #[error("expected {0}")]
    Expected(&'static str),
    /// A string has a character below U+0020.
    #[error("a string has a control character that is not escaped")]
    Control,
    /// A string has a backslash before another character than JSON defines.
    #[error("a string has an unknown escape")]
    Escape,
    /// A number is not written as JSON writes numbers.
    #[error("not a number")]
    Number,
    /// A number has a fraction where OTLP has an integer.
    #[error("not an integer")]
    Integer,
    /// A number does not fit the type of its field.
    #[error("the number is out of range")]
    Range,
    /// An enumeration does not have this name.
    #[error("the enumeration has no value of this name")]
    EnumName,
    /// An ID has a wrong number of characters.
    #[error("the ID has {found} characters instead of {}", bytes * 2)]
    IdLength {
        /// The bytes of the ID.
        bytes: usize,
        /// The characters that were found.
        found: usize,
    },
    /// An ID has a character other than 0 to 9, a to f and A to F.
    #[error("the ID is not hexadecimal")]
    Hex,
    /// Bytes are not encoded in base64.
    #[error("not base64")]
    Base64,
    /// Objects and arrays nest too deep.
    #[error("objects and arrays nest deeper than {0}")]
    Depth(usize),
}

/// What went wrong, before its place is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: JsonErrorKind,
    /// The offset in the document.
    pub(super) at: usize,
}

/// A path, if there is one.
struct In<'a>(&'a str);

// === impl JsonError ===

impl JsonError {
    /// Finds the line and the column of a fault. `path` are the names of the fields that were open, outermost first,
    /// with the place of the element for lists.
    pub(super) fn new<'p>(fault: Fault, document: &[u8], path: impl Iterator<Item = (&'p str, Option<usize>)>) -> Self {
        let before = document.get(..fault.at).unwrap_or(document);
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = before.iter().filter(|byte| **byte == b'\n').count();
        let line = before.get(line_start..).unwrap_or_default();
        // Bytes that continue a character of UTF-8 are 0b10xx_xxxx.
        let characters = line.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
        Self { kind: fault.kind, line: lines + 1, column: characters + 1, path: join(path) }
    }
}

/// Joins names. What is beyond [`MAX_PATH`] bytes is left out in the middle.
fn join<'p>(names: impl Iterator<Item = (&'p str, Option<usize>)>) -> String {
    let (mut start, mut end) = (String::new(), std::collections::VecDeque::new());
    let mut end_len = 0;
    let mut is_cut = false;
    for (name, element) in names {
        let part = element.map_or_else(|| name.to_owned(), |element| format!("{name}[{element}]"));
        if end.is_empty() && start.len() + part.len() < MAX_PATH / 2 {
            if !start.is_empty() {
                start.push('.');
            }
            start.push_str(&part);
            continue;
        }
        end_len += part.len();
        end.push_back(part);
        while end_len > MAX_PATH / 2 {
            let Some(left_out) = end.pop_front() else { break };
            end_len -= left_out.len();
            is_cut = true;
        }
    }
    if is_cut {
        start.push_str("...");
    }
    for part in end {
        if !start.is_empty() {
            start.push('.');
        }
        start.push_str(&part);
    }
    start
}

// === impl Malformed ===

impl Malformed {
    pub(super) fn at(self, at: usize) -> Fault {
        Fault { kind: JsonErrorKind::Malformed(self), at }
    }
}

// === impl In ===

impl fmt::Display for In<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ", in {}", self.0) }
    }
}
