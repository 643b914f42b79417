//! Reads a document and writes the message, member by member, by the tables.
//!
//! What is open is kept in a list instead of by recursion, so that depth costs no stack. Of each member, the name that
//! followed the last time is tried first; most programs write the members of a message in the same order every time.

use super::{
    attributes,
    error::{Fault, JsonError, Malformed},
    lexer::{Lexer, MAX_DEPTH},
    output::Output,
    schema::{Field, Int, Kind, Message},
    strings::{self, SHORT},
    tables::{KEY_VALUE, MESSAGES, SLOTS},
    values,
};
use crate::{
    budget::Permit,
    otlp::{Framed, wire::varint_len},
};

/// How deep messages usually nest; for deeper ones, the list grows.
const USUAL_DEPTH: usize = 16;

/// The messages of an export request down to this depth hold most of its bytes: resources and scopes.
const LARGE_DEPTH: usize = 2;

/// The widest gap for the length of any other message. A record that is longer than 16 KiB is moved once.
const MAX_WIDTH: u8 = 2;

/// Converts a document. Returns the message and its size in memory.
pub(super) fn transcode(
    message: &'static Message,
    document: &[u8],
    most: usize,
    permit: &mut Permit,
) -> Result<(Framed, usize), JsonError> {
    if let Err(error) = str::from_utf8(document) {
        return Err(JsonError::new(Malformed::Utf8.at(error.valid_up_to()), document, std::iter::empty()));
    }
    let output = Output::new(document.len(), most, permit);
    let output = output.map_err(|fault| JsonError::new(fault, document, std::iter::empty()))?;
    let mut transcoder = Transcoder {
        lexer: Lexer::new(document),
        output,
        frame: Frame::new(message),
        outer: Vec::with_capacity(USUAL_DEPTH),
        depth: 0,
        successors: [0; SLOTS],
        widths: [0; MESSAGES],
    };
    match transcoder.run() {
        Ok(()) => {
            let at = transcoder.lexer.at();
            transcoder.output.seal(at).map_err(|fault| JsonError::new(fault, document, std::iter::empty()))
        }
        Err(fault) => Err(JsonError::new(fault, document, transcoder.path())),
    }
}

struct Transcoder<'d, 'p> {
    lexer: Lexer<'d>,
    output: Output<'p>,
    /// The message whose members are being read.
    frame: Frame,
    /// The messages around it, outermost first.
    outer: Vec<Frame>,
    /// The number of objects and arrays that are open.
    depth: usize,
    /// For the beginning of each message and for each field: which field of the message came next the last time.
    successors: [u8; SLOTS],
    /// For each message, the width of the length that it had the last time; 0 if there was none.
    widths: [u8; MESSAGES],
}

/// A message that is open.
#[derive(Clone, Copy)]
struct Frame {
    message: &'static Message,
    /// The slot of the member before the next one.
    slot: usize,
    /// The fields that were written, a bit for each by its place in the table.
    written: u32,
    /// The field that is being read.
    field: Option<&'static Field>,
    /// The element that is being read, if the field is a list.
    element: Option<usize>,
}

/// What comes next.
#[derive(Clone, Copy)]
enum Next {
    /// The first member of an object, or its end.
    First,
    /// A member.
    Member,
    /// What follows a member.
    AfterMember,
    /// An element of a list of messages.
    Element,
    /// What follows an element.
    AfterElement,
    /// The end of the document.
    End,
}

impl Frame {
    fn new(message: &'static Message) -> Self {
        Self { message, slot: message.slot, written: 0, field: None, element: None }
    }
}

impl Transcoder<'_, '_> {
    fn run(&mut self) -> Result<(), Fault> {
        let mut next = match self.lexer.peek() {
            b'{' => {
                self.lexer.bump();
                self.depth = 1;
                Next::First
            }
            // Collectors take this for a request without content.
            b'n' => {
                self.lexer.literal("null")?;
                Next::End
            }
            _ => return Err(self.lexer.expected("an object")),
        };
        loop {
            next = match next {
                Next::First if self.lexer.eat(b'}') => self.leave()?,
                Next::First | Next::Member => self.members()?,
                Next::AfterMember => self.after_member()?,
                Next::Element => self.element()?,
                Next::AfterElement => match self.lexer.peek() {
                    b',' => {
                        self.lexer.bump();
                        self.frame.element = self.frame.element.map(|element| element + 1);
                        Next::Element
                    }
                    b']' => {
                        self.lexer.bump();
                        self.leave_list()
                    }
                    _ => return Err(self.lexer.expected("a comma or ]")),
                },
                Next::End if self.lexer.peek() == 0 && self.lexer.left() == 0 => return Ok(()),
                Next::End => return Err(Malformed::Trailing.at(self.lexer.at())),
            }
        }
    }

    /// Reads members up to the beginning of a message or of a list of messages, or to the end of this message.
    #[inline(always)]
    fn members(&mut self) -> Result<Next, Fault> {
        loop {
            let next = match self.member()? {
                Next::AfterMember => self.after_member()?,
                other => other,
            };
            if !matches!(next, Next::Member) {
                return Ok(next);
            }
        }
    }

    #[inline(always)]
    fn after_member(&mut self) -> Result<Next, Fault> {
        match self.lexer.peek() {
            b',' => {
                self.lexer.bump();
                Ok(Next::Member)
            }
            b'}' => {
                self.lexer.bump();
                self.leave()
            }
            _ => Err(self.lexer.expected("a comma or }")),
        }
    }

    /// Reads a name and its value, or the value's beginning.
    #[inline(always)]
    fn member(&mut self) -> Result<Next, Fault> {
        let Some((index, field)) = self.name()? else {
            self.lexer.peek();
            self.lexer.skip(self.depth)?;
            return Ok(Next::AfterMember);
        };
        self.frame.field = Some(field);
        self.frame.element = None;
        let first = self.lexer.peek();
        // JSON of protobuf has null for any field that has no value.
        if first == b'n' {
            self.lexer.literal("null")?;
            return Ok(Next::AfterMember);
        }
        match field.kind {
            Kind::Nested(_) if field.is_list => {
                if first != b'[' {
                    return Err(self.lexer.expected("an array"));
                }
                self.enter_list()?;
                Ok(if self.lexer.eat(b']') { self.leave_list() } else { Next::Element })
            }
            Kind::Nested(message) => {
                if first != b'{' {
                    return Err(self.lexer.expected("an object"));
                }
                self.enter(message, field.tag)
            }
            kind if field.is_list => {
                self.list(field, kind)?;
                Ok(Next::AfterMember)
            }
            kind => {
                // A value of zero is left out unless it replaces another one.
                let bit = 1_u32 << index;
                let may_omit = !field.has_presence && self.frame.written & bit == 0;
                self.frame.written |= bit;
                values::write(kind, field.tag, may_omit, first, &mut self.lexer, &mut self.output)?;
                Ok(Next::AfterMember)
            }
        }
    }

    /// Reads a name and the colon. Returns the field of that name and its place in the table, if there is one.
    #[inline(always)]
    fn name(&mut self) -> Result<Option<(usize, &'static Field)>, Fault> {
        self.lexer.peek();
        let Frame { message, slot, .. } = self.frame;
        let likely = self.successors.get(slot).copied().map_or(0, usize::from);
        let found = match message.fields.get(likely) {
            Some(field) if self.lexer.eat_name(field.name) => Some((likely, field)),
            _ => self.unlikely_name()?,
        };
        if let Some((index, _)) = found {
            self.frame.slot = message.slot + 1 + index;
        }
        Ok(found)
    }

    #[inline(never)]
    fn unlikely_name(&mut self) -> Result<Option<(usize, &'static Field)>, Fault> {
        // An error in the name is not one of the member before it.
        self.frame.field = None;
        let Frame { message, slot, .. } = self.frame;
        let name = self.lexer.name()?;
        let mut buffer = [0; SHORT];
        let name = strings::short(name, &mut buffer).unwrap_or_default();
        let found = message.fields.iter().enumerate().find(|(_, field)| field.name.as_bytes() == name);
        if let Some((index, _)) = found
            && let Some(likely) = self.successors.get_mut(slot)
        {
            *likely = u8::try_from(index).unwrap_or_default();
        }
        Ok(found)
    }

    /// Begins a message whose brace comes next.
    #[inline(always)]
    fn enter(&mut self, message: &'static Message, tag: u32) -> Result<Next, Fault> {
        self.deepen()?;
        let width = match self.widths.get(message.index) {
            Some(0) | None => self.first_width(),
            Some(width) => usize::from(*width),
        };
        self.output.open(tag, width, self.lexer.at())?;
        self.lexer.bump();
        self.outer.push(self.frame);
        self.frame = Frame::new(message);
        Ok(Next::First)
    }

    /// Returns the width for the length of a message that there was none of before.
    fn first_width(&self) -> usize {
        if self.outer.len() >= LARGE_DEPTH {
            return 1;
        }
        // Half of the rest, as a guess.
        u32::try_from(self.lexer.left() / 2).map_or(1, |len| varint_len(len) as usize)
    }

    /// Ends the message whose brace was read.
    #[inline(always)]
    fn leave(&mut self) -> Result<Next, Fault> {
        self.depth -= 1;
        let Some(outer) = self.outer.pop() else { return Ok(Next::End) };
        let width = self.output.close(self.lexer.at())?;
        if let Some(last) = self.widths.get_mut(self.frame.message.index) {
            let width = u8::try_from(width).unwrap_or(MAX_WIDTH);
            *last = if self.outer.len() < LARGE_DEPTH { width } else { width.min(MAX_WIDTH) };
        }
        self.frame = outer;
        Ok(if self.frame.element.is_some() { Next::AfterElement } else { Next::AfterMember })
    }

    /// Reads an element of a list of messages, or its beginning.
    #[inline(always)]
    fn element(&mut self) -> Result<Next, Fault> {
        let Some(Field { tag, kind: Kind::Nested(message), .. }) = self.frame.field else {
            return Err(self.lexer.expected("a member"));
        };
        match self.lexer.peek() {
            b'{' if message.index == KEY_VALUE.index
                && self.depth + attributes::DEPTH <= MAX_DEPTH
                && attributes::convert(*tag, &mut self.lexer, &mut self.output)? =>
            {
                Ok(Next::AfterElement)
            }
            b'{' => self.enter(message, *tag),
            // As in Collectors, it is an empty message.
            b'n' => {
                self.lexer.literal("null")?;
                self.output.content(*tag, &[], self.lexer.at())?;
                Ok(Next::AfterElement)
            }
            _ => Err(self.lexer.expected("an object")),
        }
    }

    /// Begins a list whose bracket comes next.
    fn enter_list(&mut self) -> Result<(), Fault> {
        self.deepen()?;
        self.lexer.bump();
        self.frame.element = Some(0);
        Ok(())
    }

    fn leave_list(&mut self) -> Next {
        self.depth -= 1;
        self.frame.element = None;
        Next::AfterMember
    }

    fn deepen(&mut self) -> Result<(), Fault> {
        if self.depth >= MAX_DEPTH {
            return Err(Malformed::Depth(MAX_DEPTH).at(self.lexer.at()));
        }
        self.depth += 1;
        Ok(())
    }

    /// Reads a list of other values. Numbers are packed into one field.
    fn list(&mut self, field: &Field, kind: Kind) -> Result<(), Fault> {
        if self.lexer.peek() != b'[' {
            return Err(self.lexer.expected("an array"));
        }
        self.enter_list()?;
        if self.lexer.eat(b']') {
            self.leave_list();
            return Ok(());
        }
        let is_packed = !kind.has_length();
        if is_packed {
            self.output.open(field.tag, 1, self.lexer.at())?;
        }
        loop {
            match kind {
                Kind::Int(Int::Fixed64) => self.short_numbers(u64::from)?,
                Kind::Double => self.short_numbers(|number| f64::from(number).to_bits())?,
                _ => {}
            }
            let tag = if is_packed { 0 } else { field.tag };
            let first = self.lexer.peek();
            values::write(kind, tag, false, first, &mut self.lexer, &mut self.output)?;
            match self.lexer.peek() {
                b',' => self.lexer.bump(),
                b']' => break self.lexer.bump(),
                _ => return Err(self.lexer.expected("a comma or ]")),
            }
            self.frame.element = self.frame.element.map(|element| element + 1);
        }
        if is_packed {
            self.output.close(self.lexer.at())?;
        }
        self.leave_list();
        Ok(())
    }

    /// Reads the next elements of a packed list as long as they are short numbers, except for the last one. Histograms have many.
    #[inline(always)]
    fn short_numbers(&mut self, convert: impl Fn(u32) -> u64) -> Result<(), Fault> {
        while let Some(number) = self.lexer.short_integer_and_comma() {
            self.output.fixed(0, convert(number).to_le_bytes(), self.lexer.at())?;
            self.frame.element = self.frame.element.map(|element| element + 1);
        }
        Ok(())
    }

    /// The fields that are being read, outermost first.
    fn path(&self) -> impl Iterator<Item = (&'static str, Option<usize>)> {
        let frames = self.outer.iter().chain(std::iter::once(&self.frame));
        frames.filter_map(|frame| frame.field.map(|field| (field.name, frame.element)))
    }
}
