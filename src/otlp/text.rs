//! Text from peers, which is shortened before it is passed on.

use std::borrow::Cow;

/// The longest error message that is passed on to a client, in bytes (design 3).
pub const MAX_MESSAGE: usize = 256;

/// The mark at the end of a text that was shortened.
const MARK: char = '…';

/// Shortens a text to at most `most` bytes. A text that was cut ends with `…`.
pub fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let room = most.saturating_sub(MARK.len_utf8());
    let end = (0..=room).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    Cow::Owned(format!("{}{MARK}", text.get(..end).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters_and_the_cut_is_marked() {
        assert_eq!(shortened("short", 5), "short");
        assert_eq!(shortened("longer", 5), "lo…");
        let cut = "é".repeat(4);
        assert_eq!(shortened(&cut, 8), cut);
        assert_eq!(shortened(&cut, 7), "éé…");
        assert_eq!(shortened(&cut, 6), "é…");
        assert_eq!(shortened("", 0), "");
    }
}
