//! The bytes of numbers, texts and lists inside of records: a variable-length integer, and
//! length-prefixed bytes. No record is named here; those are in `records.rs`.

/// What a record does not have, or has too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Appends an integer, seven bits a byte, lowest first.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Appends a length and the bytes.
pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a signed distance so that small ones of either sign are short.
pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(
        out,
        (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned(),
    );
}

/// Reads from the front of bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (first, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or(Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(*first)
    }

    pub(super) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits {
                return Err(Malformed("an integer is too long"));
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed("an integer is too long"))
    }

    pub(super) fn signed(&mut self) -> Result<i64, Malformed> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    pub(super) fn narrow<T: TryFrom<u64>>(&mut self) -> Result<T, Malformed> {
        T::try_from(self.varint()?).map_err(|_too_large| Malformed("an integer is too large"))
    }

    pub(super) fn raw(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (first, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(first)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.narrow()?;
        self.raw(length)
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_not_utf8| Malformed("a text is not UTF-8"))
    }

    /// A text that is parsed into a name.
    pub(super) fn parsed<T: std::str::FromStr>(&mut self) -> Result<T, Malformed> {
        self.text()?
            .parse()
            .map_err(|_illegal| Malformed("a name is not legal"))
    }

    /// A count of things that take at least one byte each, so that it bounds an allocation.
    pub(super) fn count(&mut self) -> Result<usize, Malformed> {
        let count = self.narrow()?;
        if count > self.0.len() {
            return Err(Malformed("a count is larger than what follows"));
        }
        Ok(count)
    }

    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed("something follows its end"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_integer_that_does_not_fit_is_refused() {
        let mut ten = vec![0xff; 9];
        ten.push(0x02);
        assert!(Reader(&ten).varint().is_err());
        assert!(Reader(&[0x80]).varint().is_err());
        assert!(Reader(&[0xff; 11]).varint().is_err());
    }

    proptest! {
        #[test]
        fn integers_read_back(value: u64, signed: i64, small in 0_u64..300) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_signed(&mut out, signed);
            put_varint(&mut out, small);
            let mut reader = Reader(&out);
            prop_assert_eq!(reader.varint(), Ok(value));
            prop_assert_eq!(reader.signed(), Ok(signed));
            prop_assert_eq!(reader.varint(), Ok(small));
            prop_assert_eq!(reader.end(), Ok(()));
        }
    }
}
