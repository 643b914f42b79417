//! Replaces references in values: `${env:VAR}`, `${env:VAR:-default}` and `${file:PATH}`, as in the Collector.
//!
//! This happens after the YAML was read, in each scalar, so that the content of a variable cannot add keys. A value
//! that consists of one reference has the type of the content (`port: ${env:PORT}` is a number), or is text where text
//! is expected. `$$` is a dollar sign, and so is a `$` that no brace follows. `${VAR}` is the same as `${env:VAR}`. A
//! variable that is not set and has no default is an error. The Collector only warns of it, but a proxy that starts
//! with half of its addresses is worse than one that does not start.
//!
//! The content of a file is text without the newlines at its end. It is a secret, which no message and no printed file shows.
//! An error names a variable only if it is clearly one (`${env:NAME}`): other text in braces may be a password that contains a
//! dollar sign.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use super::{
    ConfigError,
    node::{Node, Origin, Step, Value},
};

/// How deep references can be nested in defaults.
const MAX_DEPTH: usize = 8;

/// The largest file, in bytes. Tokens and passwords are much smaller.
const MAX_FILE: u64 = 64 << 10;

/// The functions that read variables and files: from the system, or from the table of a test.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    /// Returns the value of an environment variable.
    pub(super) variable: &'a dyn Fn(&str) -> Option<String>,
    /// Returns the content of a file.
    pub(super) file: &'a dyn Fn(&Path) -> io::Result<String>,
}

/// Replaces the references in every scalar of `node`.
pub(super) fn expand(node: &mut Node, sources: Sources<'_>) -> Result<(), ConfigError> {
    let mut path = Vec::new();
    expand_at(node, sources, &mut path)
}

fn expand_at(node: &mut Node, sources: Sources<'_>, path: &mut Vec<Step>) -> Result<(), ConfigError> {
    match &mut node.value {
        Value::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                path.push(Step::Index(index));
                expand_at(item, sources, path)?;
                path.pop();
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                path.push(Step::Key(entry.key.clone()));
                expand_at(&mut entry.node, sources, path)?;
                path.pop();
            }
        }
        Value::Text(text) if text.contains('$') => {
            let mut is_file = false;
            let expanded = expand_text(text, sources, &mut is_file, 0)
                .map_err(|message| ConfigError::new(node.position, path.clone(), message))?;
            if is_file {
                node.origin = Origin::File;
            }
            node.value = match expanded {
                Expansion::Whole(text) => {
                    let typed = scalar_of(&text);
                    Value::Expanded(text, Box::new(typed))
                }
                Expansion::Text(text) => Value::Text(text),
            };
        }
        _ => {}
    }
    Ok(())
}

/// A text after its references were replaced.
enum Expansion {
    /// The content of the reference that was the whole text.
    Whole(String),
    /// The result of any other text.
    Text(String),
}

fn expand_text(text: &str, sources: Sources<'_>, is_file: &mut bool, depth: usize) -> Result<Expansion, String> {
    if depth > MAX_DEPTH {
        return Err(format!("references are nested more than {MAX_DEPTH} deep"));
    }
    let mut out = String::with_capacity(text.len());
    let mut references = 0;
    let mut literal = false;
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        literal |= !before.is_empty();
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            literal = true;
            out.push('$');
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let (reference, after) =
                split_at_closing(after).ok_or("there is a ${ without its }; write $$ for a dollar")?;
            out.push_str(&value_of(reference, sources, is_file, depth)?);
            references += 1;
            rest = after;
        } else {
            literal = true;
            out.push('$');
            rest = after;
        }
    }
    literal |= !rest.is_empty();
    out.push_str(rest);
    Ok(if references == 1 && !literal { Expansion::Whole(out) } else { Expansion::Text(out) })
}

/// Splits `VAR:-${env:OTHER}}rest` at the closing brace that belongs to the opening one before the text.
fn split_at_closing(text: &str) -> Option<(&str, &str)> {
    let mut depth = 1_usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            let (inside, rest) = text.split_at_checked(at)?;
            return Some((inside, rest.strip_prefix('}')?));
        }
    }
    None
}

fn value_of(reference: &str, sources: Sources<'_>, is_file: &mut bool, depth: usize) -> Result<String, String> {
    if let Some(path) = reference.strip_prefix("file:") {
        *is_file = true;
        return (sources.file)(Path::new(path))
            .map_err(|error| format!("cannot read the file of ${{file:…}}: {error}"));
    }
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let (name, is_plain) = match name.split_once(':') {
        Some(("env", name)) => (name, true),
        Some(_) => return Err("there is a ${SCHEME:…} that is not known; write ${env:NAME} or ${file:PATH}".to_owned()),
        None => (name, false),
    };
    let is_name =
        name.bytes().enumerate().all(|(i, b)| b == b'_' || b.is_ascii_alphabetic() || i > 0 && b.is_ascii_digit());
    if name.is_empty() || !is_name {
        return Err(
            "the text in ${…} is not the name of an environment variable; write ${env:NAME}, or $$ for a dollar"
                .to_owned(),
        );
    }
    match ((sources.variable)(name), default) {
        (Some(value), _) => Ok(value),
        (None, Some(default)) => expand_text(default, sources, is_file, depth + 1).map(|expansion| match expansion {
            Expansion::Whole(text) | Expansion::Text(text) => text,
        }),
        (None, None) if is_plain => {
            Err(format!("environment variable {name} is not set; set it, or give a default: ${{env:{name}:-default}}"))
        }
        (None, None) => Err("there is a ${NAME} whose environment variable is not set; set it, write \
                             ${env:NAME:-default} to give a default, or $$ for a dollar"
            .to_owned()),
    }
}

/// Reads a file. The newlines at its end are removed.
pub(super) fn content_of(path: &Path) -> io::Result<String> {
    // Opening a pipe or a device could block.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("it has more than {MAX_FILE} bytes")));
    }
    // The error of the conversion would show the text.
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

/// Returns the scalar that YAML reads in a text.
fn scalar_of(text: &str) -> Value {
    if text.trim().is_empty() {
        return Value::Null;
    }
    match serde_saphyr::from_str::<Value>(text) {
        Ok(value @ (Value::Null | Value::Bool(_) | Value::Unsigned(_) | Value::Signed(_) | Value::Float(_))) => value,
        _ => Value::Text(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(name: &str) -> Option<String> {
        let value = match name {
            "HOST" => "collector.test",
            "PORT" => "4317",
            "EMPTY" => "",
            "YAML" => "{a: 1}",
            _ => return None,
        };
        Some(value.to_owned())
    }

    const SOURCES: Sources<'_> = Sources { variable: &environment, file: &content_of };

    fn expanded(text: &str) -> Result<Value, String> {
        let mut node = Node::new(Default::default(), Value::Text(text.to_owned()));
        expand(&mut node, SOURCES).map_err(|error| error.message)?;
        Ok(node.value)
    }

    fn text(value: &str) -> Result<Value, String> {
        Ok(Value::Text(value.to_owned()))
    }

    fn whole(value: &str, typed: Value) -> Result<Value, String> {
        Ok(Value::Expanded(value.to_owned(), Box::new(typed)))
    }

    #[test]
    fn a_lone_reference_keeps_its_type() {
        assert_eq!(expanded("${env:PORT}"), whole("4317", Value::Unsigned(4317)));
        assert_eq!(expanded("${PORT}"), whole("4317", Value::Unsigned(4317)));
        assert_eq!(expanded("${env:NONE:-true}"), whole("true", Value::Bool(true)));
        assert_eq!(expanded("${env:EMPTY}"), whole("", Value::Null));
        assert_eq!(expanded("${env:NONE:-}"), whole("", Value::Null));
    }

    #[test]
    fn a_reference_among_other_text_is_text() {
        assert_eq!(expanded("${env:HOST}:${env:PORT}"), text("collector.test:4317"));
        assert_eq!(expanded("${env:PORT}0"), text("43170"));
        assert_eq!(expanded("${env:NONE:-${env:HOST}}:1"), text("collector.test:1"));
    }

    #[test]
    fn literal_dollar_signs_are_unchanged() {
        assert_eq!(expanded("$${env:HOST}"), text("${env:HOST}"));
        assert_eq!(expanded("a$b$"), text("a$b$"));
        assert_eq!(expanded("$$"), text("$"));
    }

    #[test]
    fn a_variable_cannot_add_structure() {
        assert_eq!(expanded("${env:YAML}"), whole("{a: 1}", Value::Text("{a: 1}".into())));
    }

    #[test]
    fn the_error_for_an_invalid_reference_says_what_to_write() {
        let message = |text| expanded(text).expect_err(text);
        assert_eq!(
            message("${env:NONE}"),
            "environment variable NONE is not set; set it, or give a default: ${env:NONE:-default}"
        );
        assert_eq!(message("hunter2${env:PORT"), "there is a ${ without its }; write $$ for a dollar");
        assert_eq!(
            message("${hunter2:x}"),
            "there is a ${SCHEME:…} that is not known; write ${env:NAME} or ${file:PATH}"
        );
        assert!(message("${hunter2}").starts_with("there is a ${NAME} whose environment variable is not set"));
        assert!(message("${env:a b}").contains("is not the name"));
        assert!(message("${}").contains("is not the name"));
        let deep = (0..20).fold("x".to_owned(), |inner, _| format!("${{env:NONE:-{inner}}}"));
        assert_eq!(message(&deep), "references are nested more than 8 deep");
    }

    #[test]
    fn contents_of_files_are_text_and_marked_as_secret() {
        let dir = tempfile::tempdir().unwrap();
        let file = |content: &[u8]| {
            let path = dir.path().join("token");
            std::fs::write(&path, content).unwrap();
            path.display().to_string()
        };
        let marked = |text: String| {
            let mut node = Node::new(Default::default(), Value::Text(text));
            expand(&mut node, SOURCES)
                .map(|()| (node.origin == Origin::File, node.value))
                .map_err(|error| error.message)
        };
        let path = file(b"s3cr$t\r\n\n");
        assert_eq!(marked(format!("Bearer ${{file:{path}}}")), Ok((true, Value::Text("Bearer s3cr$t".into()))));
        let whole = Value::Expanded("s3cr$t".into(), Box::new(Value::Text("s3cr$t".into())));
        assert_eq!(marked(format!("${{env:NONE:-${{file:{path}}}}}")), Ok((true, whole)));
        assert_eq!(marked(format!("${{env:HOST:-${{file:{path}}}}}")).map(|(secret, _)| secret), Ok(false));
        for (content, complaint) in [(&b"hunter\xff"[..], "not UTF-8"), (&[b'x'; 65_537], "more than 65536 bytes")] {
            let error = marked(format!("${{file:{}}}", file(content))).unwrap_err();
            assert!(error.starts_with("cannot read the file of ${file:…}: ") && error.contains(complaint), "{error}");
            assert!(!error.contains("hunter") && !error.contains("xxx"), "{error}");
        }
        assert!(marked("${file:/nowhere}".into()).unwrap_err().contains("No such file"));
        assert!(marked("${file:/dev/zero}".into()).unwrap_err().ends_with("it is not a regular file"));
    }
}
