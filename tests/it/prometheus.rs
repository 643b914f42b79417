//! Checks the rules and the dashboard against the existing metrics, and a real Prometheus that scrapes two replicas.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use spanring::{
    telemetry::metrics::{ALL, Kind, Metric, find},
    tools::sink::SinkConfig,
};

use super::{
    harness::{self, Process, Proxy, Ready, http_get, until},
    rig::{Sinks, client, request, span},
};

/// Labels that scraping adds, that histograms have, or that queries create.
const FOREIGN_LABELS: [&str; 6] = ["fingerprint", "instance", "job", "le", "node", "pod"];

/// Keywords of PromQL that are followed by a list of labels.
const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

fn deployed(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

fn rules() -> Result<Value> {
    Ok(serde_saphyr::from_str(&fs::read_to_string(deployed("prometheus/spanring.rules.yaml"))?)?)
}

fn dashboard() -> Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(deployed("grafana/spanring.json"))?)?)
}

/// Collects all texts under `key`, at any depth.
fn texts(value: &Value, key: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                match value {
                    Value::String(text) if name == key => found.push(text.clone()),
                    value => texts(value, key, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| texts(item, key, found)),
        _ => {}
    }
}

fn expressions(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    texts(value, "expr", &mut found);
    found
}

/// Returns the metric of this name; the parts of a histogram count as names of the histogram.
fn metric(name: &str) -> Option<&'static Metric> {
    let part = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| find(name.strip_suffix(suffix)?));
    let is_histogram = |metric: &&Metric| matches!(metric.kind, Kind::Histogram(_));
    find(name).filter(|metric| !is_histogram(metric)).or(part.filter(is_histogram))
}

/// Returns the words of an expression outside of strings, each with the text after it.
fn words(expression: &str) -> Vec<(&str, &str)> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let (mut found, mut rest) = (Vec::new(), expression);
    while let Some(start) = rest.find(|c| is_word(c) || c == '"') {
        rest = &rest[start..];
        if let Some(text) = rest.strip_prefix('"') {
            rest = text.split_once('"').map_or("", |(_, after)| after);
            continue;
        }
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        found.push((&rest[..end], &rest[end..]));
        rest = &rest[end..];
    }
    found
}

/// Returns the names of labels in `{…}`.
fn matched_labels(selector: &str) -> Vec<&str> {
    let inside = selector.split_once('}').map_or(selector, |(inside, _)| inside);
    words(inside).into_iter().map(|(word, _)| word).collect()
}

/// Returns what an expression names that does not exist.
fn unknown(expression: &str, recorded: &BTreeSet<String>) -> Vec<String> {
    let mut wrong = Vec::new();
    let all: BTreeSet<&str> = ALL.iter().flat_map(|metric| metric.labels).copied().chain(FOREIGN_LABELS).collect();
    for (word, after) in words(expression) {
        if word.starts_with("spanring_") || word.starts_with("process_") {
            let Some(metric) = metric(word) else {
                wrong.push(format!("no metric {word}"));
                continue;
            };
            let labels = after.strip_prefix('{').map(matched_labels).unwrap_or_default();
            let known = |label: &&str| metric.labels.contains(label) || FOREIGN_LABELS.contains(label);
            wrong.extend(
                labels.iter().filter(|label| !known(label)).map(|label| format!("{word} has no label {label}")),
            );
        } else if word.contains(':') && !recorded.contains(word) {
            wrong.push(format!("no rule records {word}"));
        } else if LISTS.contains(&word) {
            let list = after.trim_start().strip_prefix('(').and_then(|list| list.split_once(')'));
            let labels = list.map(|(list, _)| words(list)).unwrap_or_default();
            wrong.extend(labels.iter().filter(|(label, _)| !all.contains(label)).map(|(l, _)| format!("no label {l}")));
        }
    }
    wrong
}

#[test]
fn every_query_names_metrics_and_labels_that_exist() -> Result<()> {
    let (rules, dashboard) = (rules()?, dashboard()?);
    let mut recorded = Vec::new();
    texts(&rules, "record", &mut recorded);
    let recorded = recorded.into_iter().collect();
    let mut queries = expressions(&rules);
    queries.extend(expressions(&dashboard));
    let mut variables = Vec::new();
    texts(&dashboard, "definition", &mut variables);
    for variable in &variables {
        let values = variable.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (selector, label) = values.and_then(|values| values.rsplit_once(", ")).context("label_values")?;
        queries.extend([selector.to_owned(), format!("by ({label})")]);
    }
    ensure!(queries.len() > 60, "{} queries", queries.len());
    let wrong: Vec<String> = queries
        .iter()
        .flat_map(|query| unknown(query, &recorded).into_iter().map(move |what| format!("{what}: {query}")))
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn documents_name_metrics_that_exist() -> Result<()> {
    let rows = |file: &str, heading: &str| -> Result<Vec<String>> {
        let document = fs::read_to_string(deployed(file))?;
        let section = document.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_default();
        let rows = section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
        Ok(rows.skip(2).map(str::to_owned).collect())
    };
    let recorded =
        BTreeSet::from(["spanring:owned_share:ratio".to_owned(), "spanring:dispatch_share:ratio".to_owned()]);
    let theirs = rows("docs/migration.md", "Metrics")?;
    let questions = [rows("docs/operations.md", "Do the replicas agree?")?, rows("docs/metrics.md", "Where to start")?];
    ensure!(theirs.len() > 15 && questions.iter().all(|rows| rows.len() > 4), "{theirs:?} {questions:?}");
    for row in theirs.iter().chain(questions.iter().flatten()) {
        let cell = row.trim_matches('|').split_once(" | ").context("two cells")?.1;
        let code: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        ensure!(!code.is_empty(), "{row}");
        for query in code.iter().filter(|code| code.contains("spanring") || code.contains("process_")) {
            // Tables name a histogram without the suffixes of its parts.
            let bare = ALL.iter().any(|metric| metric.name == *query);
            let wrong = if bare { Vec::new() } else { unknown(query, &recorded) };
            ensure!(wrong.is_empty(), "{wrong:?} in {row}");
        }
    }
    Ok(())
}

#[test]
fn every_alert_has_its_section_in_the_documents() -> Result<()> {
    let operations = fs::read_to_string(deployed("docs/operations.md"))?;
    let (mut alerts, mut runbooks) = (Vec::new(), Vec::new());
    texts(&rules()?, "alert", &mut alerts);
    texts(&rules()?, "runbook", &mut runbooks);
    ensure!(alerts.len() > 10, "{alerts:?}");
    let sections: Vec<&str> = operations.lines().filter_map(|line| line.strip_prefix("### Spanring")).collect();
    ensure!(
        alerts.iter().map(|alert| &alert["Spanring".len()..]).eq(sections.iter().copied()),
        "{alerts:?} {sections:?}"
    );
    let named = alerts.iter().map(|alert| format!("deploy/docs/operations.md#{}", alert.to_lowercase()));
    ensure!(named.eq(runbooks.iter().cloned()), "{runbooks:?}");
    Ok(())
}

#[test]
fn queries_of_unknown_metrics_are_found() {
    let recorded = BTreeSet::from(["spanring:share:ratio".to_owned()]);
    for (query, what) in [
        ("rate(spanring_ring_fingerprints[5m])", "no metric spanring_ring_fingerprints"),
        ("spanring_dispatch_call_parts", "no metric spanring_dispatch_call_parts"),
        ("spanring_ring_generation_bucket", "no metric spanring_ring_generation_bucket"),
        ("spanring_ring_members{pool=\"state\", stat=~\"a{2}\"}", "spanring_ring_members has no label stat"),
        ("sum by (pol) (spanring_ring_members)", "no label pol"),
        ("spanring:shares:ratio > 1", "no rule records spanring:shares:ratio"),
    ] {
        assert_eq!(unknown(query, &recorded), [what], "{query}");
    }
    let good =
        "sum by (le, pool) (rate(spanring_dispatch_call_parts_bucket{pool=~\"$pool\"}[5m])) / spanring:share:ratio";
    assert!(unknown(good, &recorded).is_empty());
}

/// Runs a program to its end and returns its output; an error if it fails.
fn run(command: &mut Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("its input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?} ended with {}:\n{text}", output.status);
    Ok(text)
}

/// Starts a replica with a pool `tail` of the backends `tail` and a pool `logs` of the backends `all`.
fn replica(name: &str, tail: &[SocketAddr], all: &[SocketAddr]) -> Result<Proxy> {
    let list = |backends: &[SocketAddr]| {
        backends.iter().map(|backend| format!("\"{backend}\"")).collect::<Vec<_>>().join(", ")
    };
    Proxy::start(name, |grpc, admin| {
        format!(
            "receivers: {{ otlp: {{ protocols: {{ grpc: {{ endpoint: {grpc} }} }} }} }}
pools:
  tail: {{ resolver: {{ static: {{ hostnames: [{}] }} }} }}
  logs: {{ resolver: {{ static: {{ hostnames: [{}] }} }} }}
routes:
  - {{ signals: [traces], routing_key: trace_id, pool: tail }}
  - {{ signals: [logs], routing_key: trace_id, pool: logs }}
admin: {{ endpoint: {admin} }}
",
            list(tail),
            list(all)
        )
    })
}

/// Replaces Grafana's variables by values that Prometheus accepts.
fn filled(query: &str) -> String {
    query.replace("$__rate_interval", "5m").replace("$__interval", "30s")
}

#[test]
fn promtool_accepts_the_page_the_rules_and_the_dashboard() -> Result<()> {
    let Some(promtool) = harness::peer("promtool")? else { return Ok(()) };
    let sinks = Sinks::start(2, &SinkConfig::default())?;
    let proxy = replica("spanring", &sinks.addresses(), &sinks.addresses())?;
    sinks.runtime.block_on(async {
        let spans = (1..=64).map(|trace| span(trace, 1)).collect();
        client(proxy.grpc).await?.export(request(spans)).await?;
        anyhow::Ok(())
    })?;
    let (_, page) = http_get(&format!("http://{}/metrics", proxy.admin))?;
    let complaints = run(Command::new(&promtool).args(["check", "metrics"]), &page)?;
    ensure!(complaints.trim().is_empty(), "{complaints}");

    let folder = deployed("prometheus");
    run(Command::new(&promtool).current_dir(&folder).args(["check", "rules", "spanring.rules.yaml"]), "")?;
    run(Command::new(&promtool).current_dir(&folder).args(["test", "rules", "spanring.rules.test.yaml"]), "")?;

    // Check each query as if a rule recorded it.
    let queries = expressions(&dashboard()?);
    let rules: Vec<Value> = queries
        .iter()
        .enumerate()
        .map(|(nth, query)| serde_json::json!({ "record": format!("query:{nth}"), "expr": filled(query) }))
        .collect();
    let file = tempfile::NamedTempFile::new()?;
    let groups = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    fs::write(file.path(), groups.to_string())?;
    run(Command::new(&promtool).args(["check", "rules"]).arg(file.path()), "")?;
    Ok(())
}

/// A Prometheus that scrapes these replicas and evaluates our rules every second.
struct Prometheus {
    promtool: PathBuf,
    address: SocketAddr,
    _process: Process,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    fn start(program: &Path, promtool: PathBuf, replicas: &[&Proxy]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let targets: Vec<String> = replicas.iter().map(|replica| format!("\"{}\"", replica.admin)).collect();
        let config = dir.path().join("prometheus.yaml");
        fs::write(
            &config,
            format!(
                "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}
rule_files: [\"{}\"]
scrape_configs:
  - {{ job_name: spanring, static_configs: [{{ targets: [{}] }}] }}
",
                deployed("prometheus/spanring.rules.yaml").display(),
                targets.join(", ")
            ),
        )?;
        let (process, [address]) = harness::on_free_ports(|[address]| {
            let mut command = Command::new(program);
            command.arg(format!("--config.file={}", config.display()));
            command.arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()));
            command.arg(format!("--web.listen-address={address}"));
            Ok((Process::start("prometheus", &mut command)?, Ready::Page(format!("http://{address}/-/ready"))))
        })?;
        Ok(Self { promtool, address, _process: process, _dir: dir })
    }

    /// Returns the current series of an expression.
    fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let server = format!("http://{}", self.address);
        let mut command = Command::new(&self.promtool);
        command.args(["query", "instant", "-o", "json", &server, expression]);
        Ok(serde_json::from_str(&run(&mut command, "")?)?)
    }
}

#[test]
fn replicas_that_disagree_are_detected_with_the_first_scrape() -> Result<()> {
    let (Some(prometheus), Some(promtool)) = (harness::peer("prometheus")?, harness::peer("promtool")?) else {
        return Ok(());
    };
    let sinks = Sinks::start(3, &SinkConfig::default())?;
    let all = sinks.addresses();
    let replicas = [replica("spanring-0", &all, &all)?, replica("spanring-1", &all[..2], &all)?];
    let prometheus = Prometheus::start(&prometheus, promtool, &replicas.each_ref())?;
    let rules = rules()?;
    let groups = rules["groups"].as_array().context("groups")?;
    let alert = |name: &str| {
        let all = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten());
        let found = all.into_iter().find(|rule| rule["alert"] == name).and_then(|rule| rule["expr"].as_str());
        found.map(str::to_owned).with_context(|| format!("no alert {name}"))
    };
    until("both replicas were scraped once", || {
        let seen = prometheus.query("count(spanring_ring_fingerprint{pool=\"tail\"}) == 2")?;
        Ok((!seen.is_empty()).then_some(()))
    })?;
    // The first scrape must be sufficient, so query only once.
    let pools: Vec<Value> = prometheus.query(&alert("SpanringReplicasDisagree")?)?;
    ensure!(pools.len() == 1 && pools[0]["metric"]["pool"] == "tail", "only pool tail differs: {pools:?}");

    for (name, quiet) in [("SpanringDiscoveryStale", true), ("SpanringRingEmpty", true), ("SpanringRefusals", true)] {
        let found = prometheus.query(&alert(name)?)?;
        ensure!(found.is_empty() == quiet, "{name}: {found:?}");
    }
    until("the rules are evaluated and the alert is pending", || {
        let pending = prometheus.query("ALERTS{alertname=\"SpanringReplicasDisagree\", pool=\"tail\"}")?;
        let shares = prometheus.query("spanring:owned_share:ratio{pool=\"logs\"}")?;
        Ok((pending.len() == 1 && shares.len() == 3).then_some(()))
    })?;
    for expression in expressions(&rules) {
        prometheus.query(&expression).with_context(|| expression.clone())?;
    }
    Ok(())
}
