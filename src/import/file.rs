//! The CSV files, line by line: each line is a row, or is bad for a reason.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use csv::ByteRecord;
use indicatif::ProgressBar;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Users.
    Users,
    /// Tweets and replies.
    Tweets,
    /// Follows.
    Follows,
    /// Likes.
    Likes,
}

impl Kind {
    /// What its rows are called.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Users => "users",
            Kind::Tweets => "tweets",
            Kind::Follows => "follows",
            Kind::Likes => "likes",
        }
    }

    /// The columns, and whether a file must have them.
    const fn columns(self) -> &'static [(&'static str, bool)] {
        match self {
            Kind::Users => {
                &[("id", true), ("username", true), ("display_name", true), ("email", false), ("created_at_ms", true)]
            }
            Kind::Tweets => {
                &[("id", true), ("user_id", true), ("reply_to_id", false), ("content", true), ("created_at_ms", true)]
            }
            Kind::Follows => &[("follower", true), ("following", true), ("created_at_ms", false)],
            Kind::Likes => &[("user_id", true), ("tweet_id", true), ("created_at_ms", true)],
        }
    }
}

/// A row as its file has it: times and ids of tweets are the file's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// A user.
    User { id: i64, username: String, display_name: String, email: Option<String>, created_ms: i64 },
    /// A tweet or reply.
    Tweet { id: i64, user_id: i64, reply_to: Option<i64>, content: String, created_ms: i64 },
    /// A follow.
    Follow { follower: i64, following: i64, created_ms: Option<i64> },
    /// A like.
    Like { user_id: i64, tweet_id: i64, created_ms: i64 },
}

/// A line of a file, without the lines of line breaks within quotes.
#[derive(Debug)]
pub struct Line {
    /// Its number; the header is 1.
    pub number: i64,
    /// The row, or why it is bad.
    pub row: Result<Row, String>,
}

/// A file that is being read.
pub struct Lines {
    kind: Kind,
    path: PathBuf,
    reader: csv::Reader<Counted>,
    /// Where each column of the kind stands.
    at: Vec<Option<usize>>,
    width: usize,
    record: ByteRecord,
}

/// Moves a progress bar on by what was read.
struct Counted {
    file: File,
    bar: ProgressBar,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.bar.inc(read as u64);
        Ok(read)
    }
}

impl Lines {
    /// Opens a file and reads its header.
    pub fn open(kind: Kind, path: &Path, bar: &ProgressBar) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("could not open {}", path.display()))?;
        let mut reader = csv::ReaderBuilder::new()
            .flexible(true)
            .buffer_capacity(1 << 20)
            .from_reader(Counted { file, bar: bar.clone() });
        let header = reader.byte_headers().with_context(|| format!("could not read {}", path.display()))?.clone();
        let names: Vec<String> = header
            .iter()
            .map(|name| String::from_utf8_lossy(name).trim_start_matches('\u{feff}').trim().to_lowercase())
            .collect();
        let mut at = Vec::new();
        for (column, required) in kind.columns() {
            let place = names.iter().position(|name| name == column);
            if place.is_none() && *required {
                bail!(
                    "{} has no column `{column}`: its first line must name the columns, and names {}",
                    path.display(),
                    names.join(",")
                );
            }
            at.push(place);
        }
        Ok(Lines { kind, path: path.to_owned(), reader, at, width: names.len(), record: ByteRecord::new() })
    }

    /// The next line; `None` at the end.
    pub fn next(&mut self) -> anyhow::Result<Option<Line>> {
        let read = self.reader.read_byte_record(&mut self.record);
        if !read.with_context(|| format!("could not read on in {}", self.path.display()))? {
            return Ok(None);
        }
        let number = self.record.position().map_or(0, |position| position.line().cast_signed());
        let fields = self.record.len();
        let row = if fields == self.width {
            self.row()
        } else {
            Err(format!("it has {fields} fields, but the first line names {} columns", self.width))
        };
        Ok(Some(Line { number, row }))
    }

    fn row(&self) -> Result<Row, String> {
        // The numbers are places in `Kind::columns`.
        Ok(match self.kind {
            Kind::Users => {
                let username = self.text(1)?.to_owned();
                if !is_username(&username) {
                    return Err(format!("the username `{username}` is not 1 to 30 letters, digits and _"));
                }
                let display_name = self.text(2)?;
                let display_name = if display_name.is_empty() { &username } else { display_name }.to_owned();
                let email = Some(self.text(3)?).filter(|email| !email.is_empty()).map(str::to_owned);
                if let Some(email) =
                    email.as_ref().filter(|email| !email.contains('@') || email.len() > EMAIL_BYTES_MAX)
                {
                    return Err(format!("`{email}` is not an e-mail address"));
                }
                Row::User { id: self.number(0)?, username, display_name, email, created_ms: self.time(4)? }
            }
            Kind::Tweets => {
                let content = self.text(3)?.to_owned();
                let length = content.chars().count();
                if length > CONTENT_CHARS_MAX {
                    return Err(format!(
                        "the content has {length} characters, but at most {CONTENT_CHARS_MAX} are allowed"
                    ));
                }
                Row::Tweet {
                    id: self.number(0)?,
                    user_id: self.number(1)?,
                    reply_to: if self.text(2)?.trim().is_empty() { None } else { Some(self.number(2)?) },
                    content,
                    created_ms: self.time(4)?,
                }
            }
            Kind::Follows => {
                let (follower, following) = (self.number(0)?, self.number(1)?);
                if follower == following {
                    return Err(format!("user {follower} follows themselves"));
                }
                let created_ms = if self.at.get(2).copied().flatten().is_some() { Some(self.time(2)?) } else { None };
                Row::Follow { follower, following, created_ms }
            }
            Kind::Likes => Row::Like { user_id: self.number(0)?, tweet_id: self.number(1)?, created_ms: self.time(2)? },
        })
    }

    /// Empty for a column that the file does not have.
    fn text(&self, column: usize) -> Result<&str, String> {
        let Some(bytes) = self.at.get(column).copied().flatten().and_then(|at| self.record.get(at)) else {
            return Ok("");
        };
        let name = self.kind.columns().get(column).map_or("", |(name, _)| name);
        let text = str::from_utf8(bytes).map_err(|_| format!("{name} is not UTF-8"))?;
        if text.contains('\0') {
            return Err(format!("{name} holds a NUL character, which PostgreSQL cannot store"));
        }
        Ok(text)
    }

    fn number(&self, column: usize) -> Result<i64, String> {
        let text = self.text(column)?;
        let name = self.kind.columns().get(column).map_or("", |(name, _)| name);
        text.trim().parse().map_err(|_| match text {
            "" => format!("{name} is empty"),
            _ => format!("{name} is `{text}`, which is not a whole number of 64 bits"),
        })
    }

    fn time(&self, column: usize) -> Result<i64, String> {
        let ms = self.number(column)?;
        if !(0..=MS_MAX).contains(&ms) {
            return Err(format!("created_at_ms is {ms}, which is not between the years 1970 and 9999"));
        }
        Ok(ms)
    }
}

/// Characters of a tweet.
const CONTENT_CHARS_MAX: usize = 280;
/// What RFC 5321 leaves of a path of 256.
const EMAIL_BYTES_MAX: usize = 254;
/// End of the year 9999.
const MS_MAX: i64 = 253_402_300_799_999;

/// Names come from systems with other rules than the registration's, so letters and digits of all scripts are taken.
fn is_username(name: &str) -> bool {
    (1..=30).contains(&name.chars().count()) && name.chars().all(|char| char == '_' || char.is_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(kind: Kind, text: &str) -> anyhow::Result<Vec<Result<Row, String>>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut lines = Lines::open(kind, file.path(), &ProgressBar::hidden())?;
        let mut rows = Vec::new();
        while let Some(line) = lines.next()? {
            rows.push(line.row);
        }
        Ok(rows)
    }

    #[test]
    fn columns_are_found_by_name_in_any_order() {
        let rows = lines(Kind::Follows, "\u{feff}created_at_ms, following ,note,follower\r\n5,2,x,1\r\n").unwrap();
        assert_eq!(rows, [Ok(Row::Follow { follower: 1, following: 2, created_ms: Some(5) })]);
        let rows = lines(Kind::Tweets, "id,user_id,content,created_at_ms\n1,2,\"a \"\"b\"\",\nc\",3\n").unwrap();
        let content = "a \"b\",\nc".to_owned();
        assert_eq!(rows, [Ok(Row::Tweet { id: 1, user_id: 2, reply_to: None, content, created_ms: 3 })]);
        let error = lines(Kind::Likes, "user_id,tweet_id\n1,2\n").unwrap_err().to_string();
        assert!(error.contains("no column `created_at_ms`"), "{error}");
    }

    #[test]
    fn bad_lines_say_why_and_the_ones_after_them_are_read() {
        let long = "ä".repeat(281);
        let text = format!(
            "id,user_id,reply_to_id,content,created_at_ms\nx,1,,a,1\n1,1,,{long},1\n1,1,,a\n1,,,a,1\n1,1,,a,-1\n1,1,y,a,1\n\
             1,1,,a\0,1\n9223372036854775807,-1,0,{},0\n",
            &long[2..]
        );
        let rows = lines(Kind::Tweets, &text).unwrap();
        let reasons: Vec<&str> = rows.iter().filter_map(|row| row.as_ref().err()).map(String::as_str).collect();
        assert_eq!(rows.len(), 8);
        for (reason, part) in
            reasons.iter().zip(["`x`", "281", "4 fields", "user_id is empty", "-1", "reply_to_id", "NUL"])
        {
            assert!(reason.contains(part), "{reason} / {part}");
        }
        assert!(matches!(rows.last(), Some(Ok(Row::Tweet { id: i64::MAX, user_id: -1, reply_to: Some(0), .. }))));
    }

    #[test]
    fn names_are_letters_and_digits_of_any_script() {
        for name in ["a", "A_9", "anıl022414", "dặngdinh255782", "東京", &"x".repeat(30)] {
            assert!(is_username(name), "{name}");
        }
        for name in ["", "a b", "a-b", "a\u{200b}", "a.b", "@a", &"x".repeat(31)] {
            assert!(!is_username(name), "{name}");
        }
    }
}
