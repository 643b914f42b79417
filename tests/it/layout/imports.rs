//! Finds the paths of the crate that a source file uses, in `use` declarations and in expressions. It reads the text of
//! the file and ignores test code.

use std::collections::BTreeSet;

/// The modules that a file refers to.
#[derive(Debug, Default)]
pub(super) struct Imports {
    /// Paths into the crate, each from the crate's root: `["otlp", "Signal"]`.
    pub(super) paths: BTreeSet<Vec<String>>,
    /// Modules in their own files that exist for tests only: `#[cfg(test)] mod NAME;`.
    pub(super) test_modules: BTreeSet<String>,
}

/// Reads the text of a file that is the module `module` of the crate.
pub(super) fn read(module: &[String], text: &str) -> Imports {
    let mut imports = Imports::default();
    let tokens = without_tests(&tokens(text), &mut imports.test_modules);
    let mut at = 0;
    let mut inline = Vec::new();
    let mut depth = 0_usize;
    while at < tokens.len() {
        match tokens[at].as_str() {
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                inline.retain(|(_, begins)| *begins < depth);
            }
            // A module in the same file: `super` means something else in it.
            "mod" if follows(&tokens, at + 2, "{") => inline.push((tokens[at + 1].clone(), depth)),
            "crate" | "spanring" | "super" | "self" if starts_path(&tokens, at) => {
                let mut here = module.to_vec();
                here.extend(inline.iter().map(|(name, _)| name.clone()));
                let mut found = Vec::new();
                at = tree(&tokens, at, &[], &mut found);
                imports.paths.extend(found.iter().filter_map(|path| absolute(&here, path)));
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    imports
}

fn follows(tokens: &[String], at: usize, expected: &str) -> bool {
    tokens.get(at).is_some_and(|token| token == expected)
}

/// Returns whether a path of the crate begins at `at`: `crate::…` that is not a part of a longer path or the scope of a
/// visibility.
fn starts_path(tokens: &[String], at: usize) -> bool {
    let before = at.checked_sub(1).and_then(|before| tokens.get(before)).map_or("", String::as_str);
    follows(tokens, at + 1, "::") && before != "::" && before != "in"
}

/// Reads a path, or a tree of paths in braces. Returns where it ends.
fn tree(tokens: &[String], mut at: usize, prefix: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("{") => {
                at += 1;
                while at < tokens.len() && tokens[at] != "}" {
                    at = if tokens[at] == "," { at + 1 } else { tree(tokens, at, &path, found) };
                }
                return at + 1;
            }
            Some(name) if name == "*" || is_name(name) => {
                path.push(name.to_owned());
                at += 1;
            }
            _ => {}
        }
        if !follows(tokens, at, "::") {
            break;
        }
        at += 1;
        if !tokens.get(at).is_some_and(|next| next == "{" || next == "*" || is_name(next)) {
            // A turbofish.
            break;
        }
    }
    found.push(path);
    if follows(tokens, at, "as") {
        at += 2;
    }
    // The path ends at any other token. The loop has to end even for unexpected input.
    if at < tokens.len() && path_goes_wrong(&tokens[at]) { at + 1 } else { at }
}

fn path_goes_wrong(token: &str) -> bool {
    !is_name(token) && !["{", "}", ",", ";"].contains(&token)
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Returns a path from the crate's root, or `None` if it leads out of the crate.
fn absolute(module: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut base = module.to_vec();
    let mut rest = path;
    while let [first, more @ ..] = rest {
        match first.as_str() {
            "crate" | "spanring" => base.clear(),
            "super" => drop(base.pop()?),
            "self" => {}
            _ => break,
        }
        rest = more;
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

/// Returns the tokens without those of items that exist for tests only.
fn without_tests(tokens: &[String], test_modules: &mut BTreeSet<String>) -> Vec<String> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !is_test_attribute(&tokens[at..]) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        let end = end_of_item(tokens, at);
        if let [.., module, name, semicolon] = &tokens[at..end]
            && module == "mod"
            && semicolon == ";"
        {
            test_modules.insert(name.clone());
        }
        at = end;
    }
    kept
}

fn is_test_attribute(tokens: &[String]) -> bool {
    let is = |expected: &[&str]| tokens.iter().map(String::as_str).take(expected.len()).eq(expected.iter().copied());
    is(&["#", "[", "cfg", "(", "test", ")"]) || is(&["#", "[", "cfg", "(", "all", "(", "test", ","])
}

/// Returns the end of the item whose attributes begin at `at`: the position after its body or semicolon, or the comma
/// after a field or an arm.
fn end_of_item(tokens: &[String], mut at: usize) -> usize {
    const ITEMS: [&str; 15] = [
        "async", "const", "enum", "extern", "fn", "impl", "let", "mod", "pub", "static", "struct", "trait", "type",
        "unsafe", "use",
    ];
    while follows(tokens, at, "#") {
        at = end_of_group(tokens, at + 1);
    }
    let is_item = tokens.get(at).is_some_and(|first| ITEMS.contains(&first.as_str()));
    let is_use = tokens[at..].iter().take(4).any(|token| token == "use");
    while at < tokens.len() {
        match tokens[at].as_str() {
            "{" if !is_use => return end_of_group(tokens, at),
            "(" | "[" | "{" => at = end_of_group(tokens, at),
            ";" => return at + 1,
            "," if !is_item => return at + 1,
            "}" => return at,
            _ => at += 1,
        }
    }
    at
}

/// Returns the end of the group that begins at `at` with a bracket.
fn end_of_group(tokens: &[String], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while at < tokens.len() {
        match tokens[at].as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
        if depth == 0 {
            break;
        }
    }
    at
}

/// Splits a text into names, `::` and single characters. Comments and quoted text are left out.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let is_part = |at: usize| chars.get(at).is_some_and(|c| c.is_alphanumeric() || *c == '_');
    let pair = |at: usize| (chars.get(at).copied().unwrap_or(' '), chars.get(at + 1).copied().unwrap_or(' '));
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        match pair(at) {
            ('/', '/') => at += chars[at..].iter().take_while(|c| **c != '\n').count(),
            ('/', '*') => at = end_of_comment(&chars, at),
            ('r', '"' | '#') if raw_hashes(&chars, at).is_some() => at = end_of_raw(&chars, at),
            ('"', _) => at = end_of_quotes(&chars, at, '"'),
            ('\'', '\\') => at = end_of_quotes(&chars, at, '\''),
            // A character, or else a lifetime.
            ('\'', _) => at += if chars.get(at + 2) == Some(&'\'') { 3 } else { 1 },
            (':', ':') => {
                tokens.push("::".to_owned());
                at += 2;
            }
            (c, _) if c.is_whitespace() => at += 1,
            _ if is_part(at) => {
                let start = at;
                while is_part(at) {
                    at += 1;
                }
                tokens.push(chars[start..at].iter().collect());
                // The prefix of a string's kind: `b"…"`, `br#"…"#`.
                if matches!(tokens.last().map(String::as_str), Some("br" | "cr"))
                    && raw_hashes(&chars, at - 1).is_some()
                {
                    at = end_of_raw(&chars, at - 1);
                }
            }
            (c, _) => {
                tokens.push(c.to_string());
                at += 1;
            }
        }
    }
    tokens
}

fn end_of_comment(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0_usize;
    loop {
        match chars.get(at..at + 2) {
            Some(['/', '*']) => (depth, at) = (depth + 1, at + 2),
            Some(['*', '/']) => (depth, at) = (depth - 1, at + 2),
            Some(_) => at += 1,
            None => return chars.len(),
        }
        if depth == 0 {
            return at;
        }
    }
}

fn end_of_quotes(chars: &[char], mut at: usize, quote: char) -> usize {
    at += 1;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// Returns the number of `#` of a raw string, if one begins at `at` with its `r`.
fn raw_hashes(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    (chars.get(at + 1 + hashes) == Some(&'"')).then_some(hashes)
}

fn end_of_raw(chars: &[char], at: usize) -> usize {
    let hashes = raw_hashes(chars, at).unwrap_or(0);
    let mut end = at + 2 + hashes;
    while end < chars.len()
        && !(chars[end] == '"' && chars[end + 1..].iter().take_while(|c| **c == '#').count() >= hashes)
    {
        end += 1;
    }
    end + 1 + hashes
}
