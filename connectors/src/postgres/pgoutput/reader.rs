//! The bytes of one message.

use super::super::DecodeError;

/// Reads a message from the front, and never past its end.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    kind: char,
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Reader { rest: message, kind: message.first().map_or('?', |kind| char::from(*kind)) }
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Truncated { kind: self.kind })?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated { kind: self.kind })?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_be_bytes)
    }

    /// A zero-terminated text.
    pub(super) fn name(&mut self) -> Result<&'a str, DecodeError> {
        let length = self.rest.iter().position(|byte| *byte == 0);
        let name = self.take(length.ok_or(DecodeError::Truncated { kind: self.kind })?)?;
        self.take(1)?;
        std::str::from_utf8(name).map_err(|_| DecodeError::Name)
    }
}
