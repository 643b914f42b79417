//! From runs to parts: the exact length of every message of a part, then its bytes.
//!
//! The cost is that of the runs and messages that a part has; messages that it does not have are never looked at.

use super::{
    scratch::{Entry, NONE, Run, Scratch, Tally},
    sources::Lookup,
};
use crate::otlp::{
    framed::{PREFIX_LEN, prefix_of},
    rope::Weaver,
    wire::{len_tag, put_varint, varint_len},
};

impl Scratch {
    /// Finds the messages of every part and their lengths; returns how long all parts are, prefixes included, and of how
    /// many runs.
    ///
    /// No sum can overflow: a part is no longer than its request, since it has a subset of its bytes and lengths in
    /// their shortest form.
    pub(super) fn measure(&mut self, depth: usize) -> (usize, usize) {
        let mut tallies = std::mem::take(&mut self.tallies);
        let mut path = std::mem::take(&mut self.path);
        let mut total = 0;
        path.runs = 0;
        for tally in &mut tallies {
            let first = self.entries.len();
            tally.len = self.measure_part(tally.first_run, depth, &mut path);
            tally.entries = (super::walk::offset(first), super::walk::offset(self.entries.len()));
            total += PREFIX_LEN + tally.len as usize;
            path.runs += 1;
        }
        self.tallies = tallies;
        let runs = path.runs;
        self.path = path;
        (total, runs)
    }

    /// Lists the messages that hold these runs, in the order in which they begin, and returns the outermost one's length.
    fn measure_part(&mut self, first_run: u32, depth: usize, path: &mut Path) -> u32 {
        let root = self.entries.len();
        let mut next = first_run;
        while let Some(run) = self.runs.get(next as usize).copied() {
            if path.open.len() < depth || path.open.last().is_some_and(|open| open.1 != run.node) {
                self.enter(run.node, depth, path);
            }
            self.grow(path.open.last().map_or(NONE, |open| open.0), run.end - run.start);
            path.runs += 1;
            next = run.next;
        }
        self.close(0, path);
        self.entries.get(root).map_or(0, |entry| entry.len)
    }

    /// Closes the messages that do not hold `leaf` and opens those that do.
    fn enter(&mut self, leaf: u32, depth: usize, path: &mut Path) {
        let (mut keep, mut node) = (depth, leaf);
        while keep > 0 && path.open.get(keep - 1).is_none_or(|open| open.1 != node) {
            path.entered.push(node);
            node = self.nodes.get(node as usize).map_or(0, |node| node.parent);
            keep -= 1;
        }
        self.close(keep, path);
        while let Some(node) = path.entered.pop() {
            let (len, segments) =
                self.nodes.get(node as usize).map_or((0, 0), |node| (node.envelope_len, node.segments as usize));
            path.runs += 1 + segments;
            path.open.push((super::walk::offset(self.entries.len()), node));
            self.entries.push(Entry { node, len });
        }
    }

    /// Closes all but `keep` messages: each then counts in its parent.
    fn close(&mut self, keep: usize, path: &mut Path) {
        while path.open.len() > keep {
            let Some((entry, node)) = path.open.pop() else { return };
            let len = self.entries.get(entry as usize).map_or(0, |entry| entry.len);
            let field = self.nodes.get(node as usize).map_or(0, |node| node.field);
            if let Some((parent, _)) = path.open.last() {
                self.grow(*parent, varint_len(len_tag(field)) + varint_len(len) + len);
            }
        }
    }

    fn grow(&mut self, entry: u32, by: u32) {
        if let Some(entry) = self.entries.get_mut(entry as usize) {
            entry.len += by;
        }
    }

    /// Writes one part behind its gRPC prefix.
    pub(super) fn write(&self, tally: &Tally, out: &mut impl Out) {
        out.headers().extend_from_slice(&prefix_of(tally.len));
        let (first, end) = tally.entries;
        let mut run = self.run(tally.first_run);
        for entry in self.entries.get(first as usize..end as usize).unwrap_or_default() {
            let Some(node) = self.nodes.get(entry.node as usize) else { continue };
            if node.field != 0 {
                put_varint(out.headers(), len_tag(node.field));
                put_varint(out.headers(), entry.len);
            }
            let mut next = node.first_segment;
            while let Some(segment) = self.segments.get(next as usize) {
                out.run(segment.start, segment.end);
                next = segment.next;
            }
            while let Some(Run { start, end, next, .. }) = run.filter(|run| run.node == entry.node) {
                out.records(*start, *end);
                run = self.run(*next);
            }
        }
    }

    fn run(&self, number: u32) -> Option<&Run> {
        self.runs.get(number as usize)
    }
}

/// The messages that are open while a part is measured, outermost first.
#[derive(Debug, Default)]
pub(super) struct Path {
    /// Number of the entry, number of the message.
    open: Vec<(u32, u32)>,
    entered: Vec<u32>,
    /// Runs of bytes that the parts are made of: prefixes and headers, envelopes, records.
    runs: usize,
}

/// What a part is written to.
pub(super) trait Out {
    /// Where prefixes, tags and lengths go.
    fn headers(&mut self) -> &mut Vec<u8>;

    /// Adds a run of the request's bytes.
    fn run(&mut self, start: u32, end: u32);

    /// Adds records: a run of the request's bytes, unless they were copied early.
    #[inline]
    fn records(&mut self, start: u32, end: u32) {
        self.run(start, end);
    }
}

/// Notes where the bytes are.
pub(super) struct Woven<'a> {
    pub(super) sources: Lookup<'a>,
    pub(super) weaver: Weaver,
}

impl Out for Woven<'_> {
    fn headers(&mut self) -> &mut Vec<u8> {
        self.weaver.headers()
    }

    #[inline]
    fn run(&mut self, start: u32, end: u32) {
        let (source, start, end) = self.sources.find(start, end);
        self.weaver.share(source, start, end);
    }
}
