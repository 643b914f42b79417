//! Tests of README and the documents of `deploy/`: links and anchors exist, commands parse, and examples are valid.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use clap::Parser;
use spanring::{cli::Cli, config::Draft};

/// The longest README, in lines.
const README_LINES: usize = 300;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns README and every document below `deploy/`, with its text.
fn documents() -> Vec<(PathBuf, String)> {
    let mut files = vec![root().join("README.md"), root().join("deploy/README.md")];
    let docs = fs::read_dir(root().join("deploy/docs")).unwrap().map(|entry| entry.unwrap().path());
    files.extend(docs.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    files.into_iter().map(|path| (path.clone(), fs::read_to_string(&path).unwrap())).collect()
}

/// Returns the contents of the code blocks of a language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let opening = format!("\n```{language}\n");
    text.split(&opening).skip(1).map(|rest| rest.split("\n```").next().unwrap().to_owned()).collect()
}

/// Returns the targets of links: the text in the round brackets of `[text](target)`.
fn targets(text: &str) -> Vec<String> {
    // A link's text may be code, so the whole line is read.
    let mut in_block = false;
    let mut found = Vec::new();
    for line in text.lines() {
        in_block ^= line.trim_start().starts_with("```");
        if !in_block {
            found.extend(line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())));
        }
    }
    found
}

/// Returns the anchors that GitHub gives to the headings.
fn anchors(text: &str) -> Vec<String> {
    let mut counts = BTreeMap::new();
    let mut anchor = |heading: &str| {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        let slug = heading.trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-");
        let count = counts.entry(slug.clone()).and_modify(|count| *count += 1).or_insert(0);
        if *count == 0 { slug } else { format!("{slug}-{count}") }
    };
    let mut in_block = false;
    let mut found = Vec::new();
    for line in text.lines() {
        in_block ^= line.trim_start().starts_with("```");
        let heading = line.trim_start_matches('#');
        if !in_block && line.starts_with('#') && heading.starts_with(' ') {
            found.push(anchor(heading));
        }
    }
    found
}

/// Returns a message about a link of a document that is broken, or `None` if its target exists.
fn broken(document: &Path, text: &str, target: &str) -> Option<String> {
    if target.starts_with("https://") || target.starts_with("http://") {
        return None;
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let path = if file.is_empty() { document.to_owned() } else { document.parent().unwrap().join(file) };
    if !path.exists() {
        return Some(format!("{}: no file {target}", document.display()));
    }
    let there = |anchor: &str| match file {
        "" => anchors(text).iter().any(|known| known == anchor),
        _ => anchors(&fs::read_to_string(&path).unwrap()).iter().any(|known| known == anchor),
    };
    anchor.filter(|anchor| !there(anchor)).map(|_| format!("{}: no heading {target}", document.display()))
}

#[test]
fn the_target_of_every_link_exists() {
    let documents = documents();
    let links: Vec<_> = documents
        .iter()
        .flat_map(|(path, text)| targets(text).into_iter().map(move |target| (path, text, target)))
        .collect();
    assert!(links.len() > 50, "{} links", links.len());
    let wrong: Vec<String> = links.iter().filter_map(|(path, text, target)| broken(path, text, target)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn broken_links_are_found() {
    let (readme, text) = (root().join("README.md"), "# One `two`\n## One two\n```\n# none\n```\n[a](#one-two-1)");
    assert_eq!(
        (targets(text), anchors(text)),
        (vec!["#one-two-1".to_owned()], vec!["one-two".into(), "one-two-1".into()])
    );
    for (target, wrong) in [
        ("#one-two", false),
        ("#none", true),
        ("deploy/docs/http2.md", false),
        ("deploy/docs/http3.md", true),
        ("deploy/docs/http2.md#what-fails-and-why", false),
        ("deploy/docs/http2.md#what-fails", true),
        ("https://example.com/none", false),
    ] {
        assert_eq!(broken(&readme, text, target).is_some(), wrong, "{target}");
    }
}

#[test]
fn readme_is_short_and_links_to_every_document() {
    let documents = documents();
    let (_, readme) = &documents[0];
    assert!(readme.lines().count() <= README_LINES, "README has {} lines", readme.lines().count());
    let linked = targets(readme);
    for (path, _) in &documents[1..] {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        assert!(linked.contains(&name), "README has no link to {name}");
    }
}

#[test]
fn commands_in_documents_parse() {
    let mut count = 0;
    for (path, text) in documents() {
        let shown = blocks(&text, "console").join("\n");
        let lines = shown.lines().filter_map(|line| line.strip_prefix("$ "));
        let commands =
            lines.flat_map(|line| line.split(&['#', ';', '|', '>'][..]).next()).flat_map(|line| line.split("&&"));
        for command in commands.map(str::trim).filter(|command| command.starts_with("spanring ")) {
            count += 1;
            let parsed = Cli::try_parse_from(command.split_whitespace());
            assert!(parsed.is_ok(), "{}: {command}: {}", path.display(), parsed.unwrap_err());
        }
    }
    assert!(count > 15, "{count} commands");
}

#[test]
fn configurations_in_documents_are_valid() {
    let mut count = 0;
    for (path, text) in documents() {
        for block in blocks(&text, "yaml").iter().filter(|block| block.contains("routes:")) {
            count += 1;
            let checked = Draft::parse("example.yaml", block, &|_| None).and_then(|draft| draft.check());
            assert!(checked.is_ok(), "{}: {}\n{block}", path.display(), checked.unwrap_err());
        }
    }
    assert!(count >= 2, "{count} configurations");
}

#[test]
fn documents_name_keys_that_exist() {
    let reference = fs::read_to_string(root().join("deploy/docs/configuration.md")).unwrap();
    let keys: Vec<&str> = reference.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    for (path, text) in documents() {
        let code = text.split('`').skip(1).step_by(2);
        let is_key =
            |word: &&str| ["receivers.otlp.", "pools.NAME.", "routes[]."].iter().any(|start| word.starts_with(start));
        for word in code.filter(is_key).map(|word| word.split([':', ' ']).next().unwrap()) {
            let known = keys.iter().any(|key| *key == word || key.starts_with(&format!("{word}.")));
            assert!(known, "{}: no key {word}", path.display());
        }
    }
}
