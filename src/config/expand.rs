//! `${env:VAR}` and `${env:VAR:-default}` in values, as the Collector has them.
//!
//! Expansion comes after YAML, on scalars: what a variable holds can't add keys. A value that is one reference and nothing
//! else takes the type of what it holds (`port: ${env:PORT}`); where a text is wanted it stays the text that it was.
//! `$$` is a dollar, and so is a `$` that no brace follows. `${VAR}` is `${env:VAR}`. A variable that is not set and has
//! no default is an error here, where the Collector only warns: a proxy that starts with half of its addresses is worse
//! than one that does not start.

use super::{
    ConfigError,
    tree::{Node, Step, Value},
};

/// How deep defaults may hold references in their turn.
const MAX_DEPTH: usize = 8;

/// Where variables come from: the environment, or a test's table.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands every scalar below `node`.
pub(super) fn expand(node: &mut Node, lookup: Lookup<'_>) -> Result<(), ConfigError> {
    let mut path = Vec::new();
    expand_at(node, lookup, &mut path)
}

fn expand_at(node: &mut Node, lookup: Lookup<'_>, path: &mut Vec<Step>) -> Result<(), ConfigError> {
    match &mut node.value {
        Value::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                path.push(Step::Index(index));
                expand_at(item, lookup, path)?;
                path.pop();
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                path.push(Step::Key(entry.key.clone()));
                expand_at(&mut entry.node, lookup, path)?;
                path.pop();
            }
        }
        Value::Text(text) if text.contains('$') => {
            let expanded = expand_text(text, lookup, 0).map_err(|message| ConfigError {
                place: Some(node.place),
                path: path.clone(),
                message,
            })?;
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

/// What became of a text.
enum Expansion {
    /// It was one reference.
    Whole(String),
    /// It was more, or none.
    Text(String),
}

fn expand_text(text: &str, lookup: Lookup<'_>, depth: usize) -> Result<Expansion, String> {
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
            let (reference, after) = split_at_closing(after)
                .ok_or_else(|| format!("\"{text}\" has a ${{ without its }}; write $$ for a dollar"))?;
            out.push_str(&value_of(reference, lookup, depth)?);
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

/// Splits `VAR:-${env:OTHER}}rest` at the brace that closes what was opened before it.
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

fn value_of(reference: &str, lookup: Lookup<'_>, depth: usize) -> Result<String, String> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let name = match name.split_once(':') {
        Some(("env", name)) => name,
        Some((scheme, _)) => return Err(format!("\"${{{scheme}:…}}\" is not known; write ${{env:NAME}}")),
        None => name,
    };
    let is_name =
        name.bytes().enumerate().all(|(i, b)| b == b'_' || b.is_ascii_alphabetic() || i > 0 && b.is_ascii_digit());
    if name.is_empty() || !is_name {
        return Err(format!(
            "\"{name}\" is no name of an environment variable; write ${{env:NAME}}, or $$ for a dollar"
        ));
    }
    match (lookup(name), default) {
        (Some(value), _) => Ok(value),
        (None, Some(default)) => expand_text(default, lookup, depth + 1).map(|expansion| match expansion {
            Expansion::Whole(text) | Expansion::Text(text) => text,
        }),
        (None, None) => {
            Err(format!("environment variable {name} is not set; set it, or give a default: ${{env:{name}:-default}}"))
        }
    }
}

/// What YAML reads in a text, if that is a scalar.
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

    fn expanded(text: &str) -> Result<Value, String> {
        let mut node = Node { place: Default::default(), value: Value::Text(text.to_owned()) };
        expand(&mut node, &environment).map_err(|error| error.message)?;
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
    fn dollars_that_mean_themselves_stay() {
        assert_eq!(expanded("$${env:HOST}"), text("${env:HOST}"));
        assert_eq!(expanded("a$b$"), text("a$b$"));
        assert_eq!(expanded("$$"), text("$"));
    }

    #[test]
    fn a_variable_cannot_add_structure() {
        assert_eq!(expanded("${env:YAML}"), whole("{a: 1}", Value::Text("{a: 1}".into())));
    }

    #[test]
    fn a_bad_reference_says_what_to_write() {
        let message = |text| expanded(text).expect_err(text);
        assert_eq!(
            message("${env:NONE}"),
            "environment variable NONE is not set; set it, or give a default: ${env:NONE:-default}"
        );
        assert_eq!(message("${env:PORT"), "\"${env:PORT\" has a ${ without its }; write $$ for a dollar");
        assert!(message("${file:x}").starts_with("\"${file:…}\" is not known"));
        assert!(message("${env:a b}").contains("is no name"));
        assert!(message("${}").contains("is no name"));
        let deep = (0..20).fold("x".to_owned(), |inner, _| format!("${{env:NONE:-{inner}}}"));
        assert_eq!(message(&deep), "references are nested more than 8 deep");
    }
}
