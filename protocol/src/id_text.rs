//! The text of a job id: its 24 bytes as 32 characters of base64url (RFC 4648, section 5), without
//! padding, of which there is none: six bits a character.
//!
//! Every job has its id read once and written twice. What is general takes up to twice the instructions.

use crate::JobId;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Stands for a byte that is no character of the alphabet: more than six bits.
const FOREIGN: u8 = 0xff;

/// The six bits of each character.
#[expect(clippy::indexing_slicing, reason = "it is evaluated by the compiler")]
const VALUES: [u8; 256] = {
    let mut values = [FOREIGN; 256];
    let mut value = 0_u8;
    while value < 64 {
        values[ALPHABET[value as usize] as usize] = value;
        value += 1;
    }
    values
};

/// The characters of these bytes.
pub(crate) fn write(bytes: &[u8; JobId::BYTES]) -> [u8; JobId::CHARS] {
    let mut text = [0; JobId::CHARS];
    let (triples, _) = bytes.as_chunks::<3>();
    let (quads, _) = text.as_chunks_mut::<4>();
    for ([a, b, c], quad) in triples.iter().zip(quads) {
        let bits = u32::from_be_bytes([0, *a, *b, *c]);
        *quad = [18, 12, 6, 0].map(|shift| char_of(bits >> shift & 63));
    }
    text
}

/// The bytes of these characters; `None` when one is foreign.
pub(crate) fn read(text: &[u8; JobId::CHARS]) -> Option<[u8; JobId::BYTES]> {
    let mut bytes = [0; JobId::BYTES];
    let mut seen = 0;
    let (quads, _) = text.as_chunks::<4>();
    let (triples, _) = bytes.as_chunks_mut::<3>();
    for (quad, triple) in quads.iter().zip(triples) {
        let [a, b, c, d] = quad.map(value_of);
        seen |= a | b | c | d;
        let [_, x, y, z] = (a << 18 | b << 12 | c << 6 | d).to_be_bytes();
        *triple = [x, y, z];
    }
    (seen < 64).then_some(bytes)
}

/// The character of six bits.
fn char_of(value: u32) -> u8 {
    ALPHABET.get(value as usize).copied().unwrap_or_default()
}

/// The six bits of a character, or [`FOREIGN`].
fn value_of(char: u8) -> u32 {
    let value = VALUES.get(usize::from(char)).copied();
    u32::from(value.unwrap_or(FOREIGN))
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_base64url(bytes: [u8; JobId::BYTES]) {
            let text = write(&bytes);
            prop_assert_eq!(std::str::from_utf8(&text).unwrap(), URL_SAFE_NO_PAD.encode(bytes));
            prop_assert_eq!(read(&text), Some(bytes));
        }

        #[test]
        fn a_foreign_character_is_refused_wherever_it_stands(
            bytes: [u8; JobId::BYTES],
            at in 0..JobId::CHARS,
            char: u8,
        ) {
            let mut text = write(&bytes);
            text[at] = char;
            let expected = URL_SAFE_NO_PAD.decode(text).ok();
            prop_assert_eq!(read(&text).map(Vec::from), expected);
        }
    }
}
