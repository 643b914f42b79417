//! Generates requests that are valid protobuf but that no SDK writes: with fields in any order, unknown fields, groups,
//! padded varints, messages in two pieces, empty messages, and IDs of any length and more than once.
//!
//! They are made from a source of numbers, which may be a random seed or the bytes of a fuzzer. `tests/fuzz` uses this
//! module, too.

/// Generates fields from a function that returns a number below a bound.
pub(crate) struct Messy<F> {
    below: F,
}

impl<F: FnMut(usize) -> usize> Messy<F> {
    pub(crate) fn new(below: F) -> Self {
        Self { below }
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.below)(bound)
    }

    /// Returns true once in `many` calls.
    fn rarely(&mut self, many: usize) -> bool {
        self.below(many) == many - 1
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap_or(0)
    }

    /// Returns a varint, which is sometimes padded.
    fn varint(&mut self, mut value: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while value >= 0x80 {
            out.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        out.push(value.to_le_bytes()[0]);
        if self.rarely(12) {
            let padding = self.below(11 - out.len());
            for _ in 0..padding {
                *out.last_mut().unwrap() |= 0x80;
                out.push(0);
            }
        }
        out
    }

    fn tag(&mut self, number: usize, wire_type: usize) -> Vec<u8> {
        self.varint(number << 3 | wire_type)
    }

    fn len(&mut self, number: usize, body: &[u8]) -> Vec<u8> {
        let (tag, len) = (self.tag(number, 2), self.varint(body.len()));
        [&tag[..], &len, body].concat()
    }

    fn text(&mut self, number: usize) -> Vec<u8> {
        let long = if self.rarely(20) { 300 } else { 6 };
        let text: Vec<_> = (0..self.below(long)).map(|_| b'a' + (self.byte() % 26)).collect();
        self.len(number, &text)
    }

    /// Returns a field that no version of OTLP has.
    fn unknown(&mut self) -> Vec<u8> {
        let number = [1000, 2047, 99_999, (1 << 29) - 1][self.below(4)];
        match self.below(5) {
            0 => {
                let value = self.below(1 << 20);
                [self.tag(number, 0), self.varint(value)].concat()
            }
            1 => [self.tag(number, 1), vec![self.byte(); 8]].concat(),
            2 => self.text(number),
            3 => {
                let inside: Vec<_> = (0..self.below(3)).flat_map(|_| self.unknown()).collect();
                [self.tag(number, 3), inside, self.tag(number, 4)].concat()
            }
            _ => [self.tag(number, 5), vec![self.byte(); 4]].concat(),
        }
    }

    /// Returns these fields in a random order, with unknown ones among them.
    fn message(&mut self, mut fields: Vec<Vec<u8>>) -> Vec<u8> {
        while self.rarely(3) {
            fields.push(self.unknown());
        }
        if self.rarely(3) {
            for index in 1..fields.len() {
                let other = self.below(index + 1);
                fields.swap(index, other);
            }
        }
        fields.concat()
    }

    /// Returns how often to repeat something: mostly once, sometimes never or more often.
    fn times(&mut self) -> usize {
        [1, 1, 1, 1, 0, 2][self.below(6)]
    }

    fn attribute(&mut self, number: usize) -> Vec<u8> {
        let value = self.text(1);
        let body = [self.text(1), self.len(2, &value)].concat();
        self.len(number, &body)
    }

    fn attributes(&mut self, number: usize) -> Vec<u8> {
        let fields = (0..self.below(3)).map(|_| self.attribute(number)).collect();
        self.message(fields)
    }

    /// Returns a message with these children, their `Resource` or `InstrumentationScope` (field 1) and their schema URL
    /// (field 3).
    fn envelope(&mut self, children: Vec<Vec<u8>>, describe: fn(&mut Self) -> Vec<u8>) -> Vec<u8> {
        let mut fields = children;
        for _ in 0..self.times() {
            let body = describe(self);
            fields.insert(0, self.len(1, &body));
        }
        for _ in 0..self.times() {
            fields.push(self.text(3));
        }
        self.message(fields)
    }

    fn id(&mut self) -> Vec<u8> {
        let len = [16, 16, 16, 16, 0, 8, 17][self.below(7)];
        vec![[1, 2, 3, 4, 0][self.below(5)]; len]
    }

    fn span(&mut self) -> Vec<u8> {
        let mut fields = Vec::new();
        for _ in 0..self.times() {
            let id = self.id();
            fields.push(self.len(1, &id));
        }
        fields.push(self.text(5));
        for _ in 0..self.times() {
            fields.push([self.tag(7, 1), vec![self.byte(); 8]].concat());
        }
        fields.push(self.attributes(9));
        self.message(fields)
    }

    /// Returns an `ExportTraceServiceRequest`.
    pub(crate) fn request(&mut self) -> Vec<u8> {
        let mut resources = Vec::new();
        for _ in 0..self.below(4) {
            let mut scopes = Vec::new();
            for _ in 0..self.below(4) {
                let mut spans = Vec::new();
                for _ in 0..self.below(6) {
                    let span = self.span();
                    spans.push(self.len(2, &span));
                }
                let scope = self.envelope(spans, |messy| [messy.text(1), messy.text(2), messy.attributes(3)].concat());
                scopes.push(self.len(2, &scope));
            }
            let resource = self.envelope(scopes, |messy| messy.attributes(1));
            resources.push(self.len(1, &resource));
        }
        self.message(resources)
    }
}
