//! What a server answers when it refuses, and which refusals pass by themselves.

use std::fmt;

use postgres_protocol::message::backend::ErrorResponseBody;

/// An `ErrorResponse` of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// SQLSTATE, five characters; see PostgreSQL's Appendix A.
    pub code: String,
    /// What the server says.
    pub message: String,
    /// What it says in addition, or an empty text.
    pub detail: String,
    /// What it advises, or an empty text.
    pub hint: String,
}

impl ServerError {
    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        is_transient_code(&self.code)
    }

    pub(super) fn from_body(body: &ErrorResponseBody) -> Self {
        use fallible_iterator::FallibleIterator;
        let mut error = ServerError::default();
        let mut fields = body.fields();
        // A field that cannot be read ends the list: what was read before it is still worth telling.
        while let Ok(Some(field)) = fields.next() {
            let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
            match field.type_() {
                b'C' => error.code = text(),
                b'M' => error.message = text(),
                b'D' => error.detail = text(),
                b'H' => error.hint = text(),
                _ => {}
            }
        }
        error
    }

    /// Reads the fields of a raw frame: a type byte and a zero-terminated text each.
    pub(super) fn from_frame(frame: &[u8]) -> Self {
        let mut error = ServerError::default();
        for field in frame.split(|byte| *byte == 0) {
            let Some((kind, text)) = field.split_first() else { break };
            let text = String::from_utf8_lossy(text).into_owned();
            match kind {
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = text,
                b'H' => error.hint = text,
                _ => {}
            }
        }
        error
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code)?;
        for (name, text) in [("detail", &self.detail), ("hint", &self.hint)] {
            if !text.is_empty() {
                write!(f, "; {name}: {text}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

/// Whether an error with this SQLSTATE passes by itself: lost connections, a server that starts or stops, resources
/// that ran out, locks, serialization failures.
fn is_transient_code(code: &str) -> bool {
    match code {
        // No replication slot or walsender is free: more of them need a setting and a restart.
        "53400" => false,
        "55006" | "55P03" | "57014" => true,
        _ => ["08", "40", "53", "57P"].iter().any(|class| code.starts_with(class)),
    }
}

/// The same for an error of tokio-postgres.
pub(super) fn is_transient(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        Some(code) => is_transient_code(code.code()),
        None => error.is_closed() || std::error::Error::source(error).is_some_and(|cause| cause.is::<std::io::Error>()),
    }
}

/// SQLSTATE of a login that the rules of the server (`pg_hba.conf`) do not let in this way.
pub(super) const REFUSED_BY_RULES: &str = "28000";

/// The error with its causes in one line. tokio-postgres says only `db error` and leaves the rest to the source.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A text as an SQL identifier.
pub(super) fn identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// A text as an SQL literal. Sessions of ours have `standard_conforming_strings` on, so a backslash is a backslash.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_transient() {
        for (code, transient) in [
            ("57P01", true),
            ("57P03", true),
            ("08006", true),
            ("53300", true),
            ("53400", false),
            ("42704", false),
            ("28P01", false),
            ("", false),
        ] {
            assert_eq!(is_transient_code(code), transient, "{code}");
        }
    }

    #[test]
    fn a_raw_error_is_read() {
        let error = ServerError::from_frame(b"SFATAL\0C57P01\0Mgoing down\0Hcome back\0\0");
        assert_eq!(error.to_string(), "going down (SQLSTATE 57P01); hint: come back");
        assert!(error.is_transient());
        assert_eq!(ServerError::from_frame(b""), ServerError::default());
    }
}
