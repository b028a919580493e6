//! Tags and names in a text, found by other means than the views use: words first, then what stands before each.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;

static WORD: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[\p{L}\p{M}\p{Nd}_]+").unwrap());
static LETTER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[\p{L}_]").unwrap());
static LINK: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"(?i-u:https?)://[^\s<>"]*"#).unwrap());

/// The tags of `text`, folded. Knows of folding what the texts of the histories need.
pub fn hashtags(text: &str) -> BTreeSet<String> {
    let tags = signed(text, ['#', '＃']).into_iter().filter(|word| LETTER.is_match(word));
    tags.map(|tag| tag.to_lowercase().replace('ς', "σ").replace("e\u{301}", "é")).collect()
}

/// The names in `text`, ASCII letters in lower case.
pub fn mentions(text: &str) -> BTreeSet<String> {
    let names = signed(text, ['@', '＠']).into_iter().filter(|word| word.chars().count() <= 30);
    names.map(|name| name.to_ascii_lowercase()).collect()
}

/// Words with one of `signs` before them, which nothing stands before that it could belong to.
fn signed(text: &str, signs: [char; 2]) -> Vec<String> {
    let text = without_links(text);
    let words = WORD.find_iter(&text).filter(|word| {
        let mut before = text[..word.start()].chars().rev();
        let sign = before.next();
        sign.is_some_and(|sign| signs.contains(&sign))
            && before.next().is_none_or(|c| !is_word(c) && !"#＃@＠&/".contains(c))
    });
    words.map(|word| word.as_str().to_owned()).collect()
}

fn is_word(c: char) -> bool {
    WORD.is_match(c.encode_utf8(&mut [0; 4]))
}

/// `text` with a space for each link.
fn without_links(text: &str) -> String {
    let (mut rest, mut kept) = (text, String::new());
    while let Some(found) = LINK.find(rest) {
        let link =
            found.as_str().trim_end_matches(['.', ',', ';', ':', '!', '?', '\'', ')', ']', '}', '…', '’', '”', '»']);
        let address = link.split_once("://").map_or("", |(_, address)| address);
        let before = rest[..found.start()].chars().next_back().or(kept.chars().next_back());
        let (until, space) = if address.is_empty() || before.is_some_and(is_word) {
            (found.start() + 1, rest[..=found.start()].to_owned())
        } else {
            (found.start() + link.len(), format!("{} ", &rest[..found.start()]))
        };
        kept.push_str(&space);
        rest = &rest[until..];
    }
    kept + rest
}
