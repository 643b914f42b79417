//! Parses `resolv.conf` as glibc and Go do. A line that cannot be used is left out and reported; all other lines are
//! used.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use hickory_resolver::proto::rr::Name;

use super::address::check_name;

/// The number of bytes of the file that are read.
pub(super) const MAX_BYTES: usize = 64 * 1024;

/// The number of name servers that are used, as in glibc and musl.
const MAX_SERVERS: usize = 3;

/// The number of search domains that are used; Kubernetes allows a pod as many.
const MAX_SEARCH: usize = 32;

/// The highest `ndots`, as in glibc.
const MAX_NDOTS: usize = 15;

/// The number of findings that are reported in one line of the log; further ones are only counted.
const MAX_FINDINGS: usize = 8;

/// The number of characters of a word that are shown in a finding.
const SHOWN: usize = 64;

/// The contents of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    pub(super) servers: Vec<SocketAddr>,
    pub(super) search: Vec<Name>,
    pub(super) ndots: usize,
    /// `options use-vc`: all questions are asked over TCP.
    pub(super) tcp_only: bool,
    pub(super) findings: Findings,
}

/// The lines and words that were left out, each with the reason.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    shown: Vec<String>,
    more: usize,
}

impl Findings {
    fn add(&mut self, line: usize, what: &str, word: &str, why: impl fmt::Display) {
        if self.shown.len() == MAX_FINDINGS {
            self.more += 1;
            return;
        }
        let word: String = word.chars().take(SHOWN).collect();
        self.shown.push(format!("line {line}: {what} {word:?}: {why}"));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shown.is_empty()
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown.join("; "))?;
        match self.more {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// Parses the file. `machine` is the machine's host name; its domain is the search list if the file has none.
pub(super) fn parse(text: &[u8], machine: &str, port: u16) -> ResolvConf {
    let mut conf = ResolvConf {
        servers: Vec::new(),
        search: domain_of(machine).into_iter().collect(),
        ndots: 1,
        tcp_only: false,
        findings: Findings::default(),
    };
    if text.len() > MAX_BYTES {
        conf.findings.add(0, "the file", "", format_args!("only its first {MAX_BYTES} bytes are read"));
    }
    // Only whole lines are used: an address that is cut off can be another valid address.
    let text = match text.get(..MAX_BYTES) {
        Some(head) => head.rsplitn(2, |byte| *byte == b'\n').last().unwrap_or_default(),
        None => text,
    };
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        // Comments may contain bytes that are not UTF-8.
        let line = String::from_utf8_lossy(line);
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => conf.nameserver(number, words.next().unwrap_or_default(), port),
            // `domain` and `search` replace each other; the last one counts.
            Some("domain") => conf.search(number, words.take(1)),
            Some("search") => conf.search(number, words),
            Some("options") => words.for_each(|option| conf.option(number, option)),
            // Keywords of other resolvers, which mean nothing here.
            None | Some("sortlist" | "lookup" | "family") => {}
            Some(other) => conf.findings.add(number, "keyword", other, "it is unknown"),
        }
    }
    conf
}

impl ResolvConf {
    fn nameserver(&mut self, line: usize, word: &str, port: u16) {
        match server(word, port) {
            _ if self.servers.len() == MAX_SERVERS => {
                let why = format_args!("only {MAX_SERVERS} are asked, as by the C library");
                self.findings.add(line, "nameserver", word, why);
            }
            Ok(server) => self.servers.push(server),
            Err(why) => self.findings.add(line, "nameserver", word, why),
        }
    }

    fn search<'a>(&mut self, line: usize, domains: impl Iterator<Item = &'a str>) {
        self.search.clear();
        for word in domains {
            match domain(word) {
                _ if self.search.len() == MAX_SEARCH => {
                    self.findings.add(line, "search domain", word, format_args!("only {MAX_SEARCH} are searched"));
                }
                Ok(domain) if !self.search.contains(&domain) => self.search.push(domain),
                Ok(_) => {}
                // NetworkManager writes "--" for an empty search list.
                Err(_) if word == "--" => {}
                Err(why) => self.findings.add(line, "search domain", word, why),
            }
        }
    }

    fn option(&mut self, line: usize, option: &str) {
        match option.split_once(':').unwrap_or((option, "")) {
            ("ndots", value) => match value.parse::<usize>() {
                Ok(ndots) => self.ndots = ndots.min(MAX_NDOTS),
                Err(_) => self.findings.add(line, "option", option, "ndots takes a number"),
            },
            ("use-vc", _) => self.tcp_only = true,
            // As in glibc, unknown options are ignored. Timeouts and attempts come from the pool's configuration.
            _ => {}
        }
    }
}

/// Parses the address of a name server.
fn server(word: &str, port: u16) -> Result<SocketAddr, &'static str> {
    match word.split_once('%') {
        // hickory's resolver cannot be given the interface of a link-local address.
        Some((ip, _)) if ip.parse::<IpAddr>().is_ok() => Err("servers with a zone (%) are not asked"),
        _ => word.parse().map(|ip| SocketAddr::new(ip, port)).map_err(|_| "it is not an address"),
    }
}

fn domain(word: &str) -> Result<Name, String> {
    // "." is the root domain: the name is asked for as it is.
    if word == "." {
        return Ok(Name::root());
    }
    // Like glibc, Kubernetes and Go, this accepts a leading dot.
    let word = word.strip_prefix('.').unwrap_or(word);
    if word.len() > 253 {
        return Err("it is longer than 253 characters".to_owned());
    }
    let labels = word.strip_suffix('.').unwrap_or(word);
    let usual = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(usual);
    if !labels.split('.').all(label) || word == "--" {
        return Err("it is not a domain".to_owned());
    }
    let mut name = Name::from_ascii(labels).map_err(|error| error.to_string())?;
    name.set_fqdn(true);
    Ok(name)
}

/// Returns the domain in the machine's host name.
fn domain_of(machine: &str) -> Option<Name> {
    let (_, domain_part) = machine.trim().split_once('.')?;
    check_name(domain_part).ok()?;
    domain(domain_part).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> (Vec<String>, Vec<String>, String) {
        let conf = parse(text.as_bytes(), "box", 53);
        let servers = conf.servers.iter().map(ToString::to_string).collect();
        (servers, conf.search.iter().map(ToString::to_string).collect(), conf.findings.to_string())
    }

    #[test]
    fn a_pods_file_is_read_completely() {
        let text = "# by the kubelet\nsearch obs.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10 ; kube-dns\n\
                    nameserver fd00::a\noptions ndots:5 edns0 trust-ad timeout:1\n";
        let conf = parse(text.as_bytes(), "box.example.com", 53);
        assert_eq!(conf.servers, ["10.96.0.10:53".parse().unwrap(), "[fd00::a]:53".parse().unwrap()]);
        let search: Vec<String> = conf.search.iter().map(ToString::to_string).collect();
        assert_eq!(search, ["obs.svc.cluster.local.", "svc.cluster.local."]);
        assert_eq!((conf.ndots, conf.tcp_only), (5, false));
        assert!(conf.findings.is_empty(), "{}", conf.findings);
    }

    #[test]
    fn unusable_entries_are_left_out_and_reported_and_the_others_are_used() {
        let long = "a".repeat(64);
        let text = format!(
            "nameserver dns.example.com\nnameserver 10.0.0.1\nnameserver\nsearch -- {long}.test a..b käse.test good.test. \
             good.test\noptions ndots:x ndots:99 no-such-thing use-vc\nfrobnicate\n"
        );
        let (servers, search, findings) = shown(&text);
        assert_eq!((servers, search), (vec!["10.0.0.1:53".to_owned()], vec!["good.test.".to_owned()]));
        let expected = format!(
            "line 1: nameserver \"dns.example.com\": it is not an address; line 3: nameserver \"\": it is not an address; \
             line 4: search domain \"{long}\": it is not a domain; line 4: search domain \"a..b\": it is not a domain; \
             line 4: search domain \"käse.test\": it is not a domain; line 5: option \"ndots:x\": ndots takes a number; \
             line 6: keyword \"frobnicate\": it is unknown"
        );
        assert_eq!(findings, expected);
        let conf = parse(text.as_bytes(), "box", 53);
        assert_eq!((conf.ndots, conf.tcp_only), (MAX_NDOTS, true));
    }

    #[test]
    fn servers_domains_bytes_and_findings_are_bounded() {
        let servers: String = (1..=5).map(|n| format!("nameserver 10.0.0.{n}\n")).collect();
        let conf = parse(servers.as_bytes(), "box", 53);
        assert_eq!(conf.servers.len(), MAX_SERVERS);
        assert!(conf.findings.to_string().contains("only 3 are asked"), "{}", conf.findings);

        let search: Vec<String> = (0..100).map(|n| format!("d{n}.test")).collect();
        let conf = parse(format!("search {}", search.join(" ")).as_bytes(), "box", 53);
        assert_eq!(conf.search.len(), MAX_SEARCH);
        assert!(conf.findings.to_string().ends_with("; and 60 more"), "{}", conf.findings);

        let mut long = b"nameserver 10.0.0.1\n#".to_vec();
        long.resize(MAX_BYTES, b'x');
        long.extend(b"\nnameserver 10.0.0.2\n");
        let conf = parse(&long, "box", 53);
        assert_eq!(conf.servers, ["10.0.0.1:53".parse().unwrap()]);
        assert!(!conf.findings.is_empty());
    }

    #[test]
    fn a_server_with_a_zone_is_left_out_and_reported() {
        let (servers, _, findings) = shown("nameserver fe80::1%eth0\nnameserver 10.0.0.1");
        assert_eq!(servers, ["10.0.0.1:53"]);
        assert_eq!(findings, "line 1: nameserver \"fe80::1%eth0\": servers with a zone (%) are not asked");
    }

    #[test]
    fn the_last_of_domain_and_search_counts_and_the_machines_domain_is_the_default() {
        assert_eq!(shown("search a.test\ndomain b.test").1, ["b.test."]);
        assert_eq!(shown("domain b.test\nsearch a.test .").1, ["a.test.", "."]);
        let of = |machine| parse(b"", machine, 53).search.first().map(ToString::to_string);
        assert_eq!(of("box.example.com\n"), Some("example.com.".to_owned()));
        assert_eq!((of("box"), of("box."), of("matt.schulte's computer")), (None, None, None));
    }

    #[test]
    fn any_bytes_are_parsed_within_the_bounds() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let mut text = b"nameserver 10.0.0.1\nsearch a.test\noptions ndots:".to_vec();
            text.extend(bytes);
            for text in [bytes, &text] {
                let conf = parse(text, "box.example.com", 53);
                assert!(
                    conf.servers.len() <= MAX_SERVERS && conf.search.len() <= MAX_SEARCH && conf.ndots <= MAX_NDOTS
                );
                assert!(conf.findings.to_string().len() <= (MAX_FINDINGS + 1) * 1024);
            }
        });
    }
}
