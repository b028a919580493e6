//! What people may ask search for.
//!
//! ```text
//!   query  = item *( space item )
//!   item   = [ "-" ] ( word | phrase | "#" tag | "@" name | "from:" name | "since:" day | "until:" day | "has:media" )
//!   phrase = `"` words `"`                       day = YYYY-MM-DD, in UTC
//! ```
//!
//! All items must fit; those after `-` must not. `since:` begins with its day, `until:` ends before its day. Words that
//! have neither letters, digits nor pictures are passed over. A text before `:` that is none of these is a word.

use feedmill_model::{Timestamp, text};
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::{fold, terms};

/// Characters of a query.
const CHARS_MAX: usize = 500;
/// Items of a query.
const CLAUSES_MAX: usize = 32;

/// Tweets that are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// What must fit, and what must not; at least one must.
    pub clauses: Vec<Clause>,
}

/// One item of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// Only what does not fit is looked for.
    pub excluded: bool,
    /// What.
    pub what: What,
}

/// What an item asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// These words, one after the other.
    Words(Vec<String>),
    /// A tweet by this account.
    From {
        /// Its name.
        name: String,
        /// Its id, once it was looked up; `None` if there is no such account.
        user: Option<i64>,
    },
    /// This tag, folded.
    Tag(String),
    /// The name of somebody who is mentioned, with ASCII letters in lower case.
    Mention(String),
    /// Posted at this time or later.
    Since(Timestamp),
    /// Posted before this time.
    Until(Timestamp),
    /// With media.
    Media,
}

/// Accounts that are looked for: each word is the beginning of a word of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountQuery {
    /// The words, folded.
    pub words: Vec<String>,
    /// All of it as a name, folded.
    pub username: String,
}

/// A query that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} (at character {at}): {instead}")]
pub struct QueryError {
    /// How many characters (Unicode scalar values) of the query stand before the problem.
    pub at: usize,
    /// What is wrong there.
    pub problem: String,
    /// What to write instead.
    pub instead: &'static str,
}

fn error<T>(at: usize, problem: impl Into<String>, instead: &'static str) -> Result<T, QueryError> {
    Err(QueryError { at, problem: problem.into(), instead })
}

fn check_length(text: &str) -> Result<(), QueryError> {
    if text.chars().nth(CHARS_MAX).is_some() {
        return error(CHARS_MAX, format!("the query is longer than {CHARS_MAX} characters"), "look for fewer words");
    }
    Ok(())
}

impl AccountQuery {
    /// Understands `text`: a name or the beginning of one, with or without `@`.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        check_length(text)?;
        let words = terms(text);
        if words.is_empty() {
            return error(0, "there is no name to look for", "write a name or its beginning, as in `ada`");
        }
        let username = fold(text.trim().trim_start_matches(['@', '＠']));
        Ok(AccountQuery { words: words.into_iter().take(CLAUSES_MAX).collect(), username })
    }
}

impl Query {
    /// Understands `text`.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        check_length(text)?;
        let mut items = Items { characters: text.chars().collect(), at: 0 };
        let mut clauses: Vec<Clause> = Vec::new();
        let mut first_excluded = None;
        while let Some((start, clause)) = items.next()? {
            if clauses.len() == CLAUSES_MAX {
                return error(start, format!("there are more than {CLAUSES_MAX} items"), "look for fewer at once");
            }
            first_excluded = first_excluded.or(clause.excluded.then_some(start));
            clauses.push(clause);
        }
        match first_excluded {
            _ if clauses.iter().any(|clause| !clause.excluded) => Ok(Query { clauses }),
            Some(at) => error(at, "nothing is looked for but only left out", "add a word that shall be found"),
            None => error(0, "there is no word to look for", "write a word, a \"phrase\", #tag, @name or from:name"),
        }
    }

    /// Whether it has a word that makes one tweet fit better than another.
    pub fn has_words(&self) -> bool {
        self.clauses.iter().any(|clause| !clause.excluded && matches!(clause.what, What::Words(_)))
    }
}

/// Reads items from left to right.
struct Items {
    characters: Vec<char>,
    at: usize,
}

const fn is_quote(c: char) -> bool {
    matches!(c, '"' | '“' | '”' | '„')
}

impl Items {
    fn peek(&self) -> Option<char> {
        self.characters.get(self.at).copied()
    }

    /// Takes what follows until `ends`.
    fn take_until(&mut self, ends: impl Fn(char) -> bool) -> String {
        let rest = self.characters.iter().skip(self.at).copied();
        let taken: String = rest.take_while(|c| !ends(*c)).collect();
        self.at += taken.chars().count();
        taken
    }

    /// The next item and where it begins; words without anything to look for are passed over.
    fn next(&mut self) -> Result<Option<(usize, Clause)>, QueryError> {
        loop {
            self.take_until(|c| !c.is_whitespace());
            let start = self.at;
            let Some(first) = self.peek() else { return Ok(None) };
            let excluded = first == '-';
            if excluded {
                self.at += 1;
                if self.peek().is_none_or(char::is_whitespace) {
                    return error(
                        start,
                        "nothing follows the minus",
                        "write what is left out right after it, as in `-word`",
                    );
                }
            }
            if let Some(what) = self.what()? {
                return Ok(Some((start, Clause { excluded, what })));
            }
        }
    }

    fn what(&mut self) -> Result<Option<What>, QueryError> {
        let start = self.at;
        if self.peek().is_some_and(is_quote) {
            self.at += 1;
            let phrase = self.take_until(is_quote);
            if self.peek().is_none() {
                return error(start, "the quotation mark is not closed", "write another `\"` after the phrase");
            }
            self.at += 1;
            let words = terms(&phrase);
            if words.is_empty() {
                return error(
                    start,
                    "there is no word between the quotation marks",
                    "write words between them, or take them away",
                );
            }
            return Ok(Some(What::Words(words)));
        }
        let item = self.take_until(|c| c.is_whitespace() || is_quote(c));
        if item.starts_with(['#', '＃']) {
            return tag(start, &item).map(Some);
        }
        if item.starts_with(['@', '＠']) {
            let what = "write the name of an account after it, as in `@ada`";
            return Ok(Some(What::Mention(name(start, &item, what)?)));
        }
        let Some((key, value)) = item.split_once(':') else { return Ok(words(&item)) };
        let at = start + key.chars().count() + 1;
        match key.to_ascii_lowercase().as_str() {
            "from" => {
                let signed = format!("@{}", value.trim_start_matches(['@', '＠']));
                let name = name(at, &signed, "write the name of an account after `from:`, as in `from:ada`")?;
                Ok(Some(What::From { name, user: None }))
            }
            "since" => Ok(Some(What::Since(day(at, value)?))),
            "until" => Ok(Some(What::Until(day(at, value)?))),
            "has" if value.eq_ignore_ascii_case("media") => Ok(Some(What::Media)),
            "has" => error(at, format!("`{value}` is nothing that a tweet can be asked for"), "write `has:media`"),
            _ => Ok(words(&item)),
        }
    }
}

fn words(item: &str) -> Option<What> {
    let words = terms(item);
    (!words.is_empty()).then_some(What::Words(words))
}

fn tag(at: usize, item: &str) -> Result<What, QueryError> {
    let tags = text::entities(item).hashtags;
    match tags.first().filter(|tag| tag.end == item.chars().count()) {
        Some(tag) => Ok(What::Tag(text::fold_tag(&tag.text))),
        None => error(
            at,
            format!("`{item}` is no tag"),
            "write letters, digits or `_` after the sign, and not digits alone, as in `#rust`",
        ),
    }
}

fn name(at: usize, item: &str, instead: &'static str) -> Result<String, QueryError> {
    let names = text::entities(item).mentions;
    match names.first().filter(|name| name.end == item.chars().count()) {
        Some(name) => Ok(name.text.to_ascii_lowercase()),
        None => error(at, format!("`{item}` names no account"), instead),
    }
}

/// The beginning of a day in UTC.
fn day(at: usize, value: &str) -> Result<Timestamp, QueryError> {
    let day = value.parse::<Date>().ok().filter(|_| value.len() == "YYYY-MM-DD".len());
    let begins = day.and_then(|day| day.to_zoned(TimeZone::UTC).ok());
    match begins {
        Some(begins) => Ok(begins.timestamp().as_microsecond()),
        None => error(at, format!("`{value}` is no day"), "write a day as year, month and day, as in `2026-02-28`"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items(text: &str) -> Vec<(bool, What)> {
        let query = Query::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        query.clauses.into_iter().map(|clause| (clause.excluded, clause.what)).collect()
    }

    fn of(words: &[&str]) -> What {
        What::Words(words.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_operator_is_understood() {
        let found =
            items("Über -\"The Cat\" #Rust @Ada from:@Bob since:2026-01-02 until:2026-02-28 HAS:media -has:media");
        let expected = [
            (false, of(&["uber"])),
            (true, of(&["the", "cat"])),
            (false, What::Tag("rust".into())),
            (false, What::Mention("ada".into())),
            (false, What::From { name: "bob".into(), user: None }),
            (false, What::Since(1_767_312_000_000_000)),
            (false, What::Until(1_772_236_800_000_000)),
            (false, What::Media),
            (true, What::Media),
        ];
        assert_eq!(found, expected);
        assert_eq!(
            items("rock&roll ! 10:30 http://www.a.b/c"),
            [(false, of(&["rock", "roll"])), (false, of(&["10", "30"])), (false, of(&["a.b"])),]
        );
        assert_eq!(items("a\"b c\"“d”"), [(false, of(&["a"])), (false, of(&["b", "c"])), (false, of(&["d"]))]);
    }

    #[test]
    fn an_error_says_where_and_what_to_write() {
        for (text, at, instead) in [
            ("", 0, "write a word"),
            (" !? ", 0, "write a word"),
            ("日本 \"語", 3, "another `\"`"),
            ("a -\"\"", 3, "words between them"),
            ("a - b", 2, "right after it"),
            (" -a -b", 1, "add a word"),
            ("日 #1", 2, "`#rust`"),
            ("#a-b", 0, "`#rust`"),
            ("a @ b", 2, "`@ada`"),
            ("a from:", 7, "`from:ada`"),
            ("a from:\"x\"", 7, "`from:ada`"),
            ("since:2026-02-30 a", 6, "`2026-02-28`"),
            ("until:yesterday", 6, "`2026-02-28`"),
            ("a has:video", 6, "`has:media`"),
            (&"a".repeat(501), 500, "fewer words"),
            (&"a ".repeat(33), 64, "fewer at once"),
        ] {
            let error = Query::parse(text).unwrap_err();
            assert!(error.at == at && error.instead.contains(instead), "{text}: {error:?}");
            assert!(error.to_string().contains(&format!("character {at}")), "{error}");
        }
        assert_eq!(AccountQuery::parse(" @ ").unwrap_err().at, 0);
    }

    #[test]
    fn accounts_are_asked_for_by_words() {
        let query = AccountQuery::parse("@Ada_L ").unwrap();
        assert_eq!((query.words, query.username), (vec!["ada_l".to_owned()], "ada_l".to_owned()));
    }

    proptest! {
        #[test]
        fn no_query_is_too_much(text in "[-\"#@:a-c é日from since]{0,40}") {
            match Query::parse(&text) {
                Ok(query) => prop_assert!(query.clauses.iter().any(|clause| !clause.excluded)),
                Err(error) => prop_assert!(error.at <= text.chars().count()),
            }
        }
    }
}
