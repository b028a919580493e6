//! The words by which a text is found.
//!
//! ```text
//!   "Café at https://www.example.org/a?b, 日本語!" ─► links apart ─► folded ─► cut ─► cafe at example.org 日本語
//! ```
//!
//! Texts and queries go the same way, so a word is found however it is written. It is done here and not by an engine:
//! every engine is given the words with a space between them.
//!
//! - Folded is case, compatibility forms (`Ａ`, `ﬁ`), the diacritics that Latin, Greek and Cyrillic letters share
//!   (U+0300 to U+036F), and how an apostrophe is written. Marks of other scripts are part of the word and stay.
//! - Words are cut as UAX #29 says, with dictionaries for scripts that have no spaces. Pictures are words too;
//!   punctuation is none.
//! - A link is one word, its host without `www.`: its path would only be noise.

use std::sync::LazyLock;

use feedmill_model::text;
use icu_casemap::CaseMapper;
use icu_normalizer::{ComposingNormalizer, DecomposingNormalizer};
use icu_properties::CodePointSetData;
use icu_properties::props::ExtendedPictographic;
use icu_segmenter::options::WordBreakInvariantOptions;
use icu_segmenter::{WordSegmenter, WordSegmenterBorrowed};

/// Characters of a word that count.
const WORD_CHARS_MAX: usize = 64;

static SEGMENTER: LazyLock<WordSegmenterBorrowed<'static>> =
    LazyLock::new(|| WordSegmenter::new_auto(WordBreakInvariantOptions::default()));

/// The words of `text`, folded, in their order. None of them has white space in it.
pub fn terms(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    let mut at = 0;
    let links = if text.contains("://") { text::entities(text).urls } else { Vec::new() };
    for link in links {
        let (before, from) = split(rest, link.start - at);
        words(before, &mut found);
        found.extend(host(&link.text));
        (rest, at) = (split(from, link.end - link.start).1, link.end);
    }
    words(rest, &mut found);
    found
}

/// `text` before and from its character `at` on.
fn split(text: &str, at: usize) -> (&str, &str) {
    let byte = text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    text.split_at_checked(byte).unwrap_or((text, ""))
}

/// The word that stands for a link.
fn host(link: &str) -> Option<String> {
    let folded = fold(link);
    let host = folded.split_once("://")?.1.split(['/', '?', '#']).next()?;
    let host: String = host.strip_prefix("www.").unwrap_or(host).split_whitespace().collect();
    (!host.is_empty()).then(|| host.chars().take(WORD_CHARS_MAX).collect())
}

/// The words of a text without links.
fn words(text: &str, found: &mut Vec<String>) {
    if text.trim().is_empty() {
        return;
    }
    let folded = fold(text);
    let mut start = 0;
    // The first boundary is the start of the text.
    for end in SEGMENTER.segment_str(&folded) {
        let segment = folded.get(start..end).unwrap_or_default();
        start = end;
        // A mark holds on to white space before it.
        let words =
            segment.split_whitespace().filter(|word| word.chars().any(|c| c.is_alphanumeric() || is_picture(c)));
        found.extend(words.map(|word| word.chars().take(WORD_CHARS_MAX).collect::<String>()));
    }
}

/// Digits and signs like `©` are pictures to Unicode only for their variants.
fn is_picture(c: char) -> bool {
    c >= '\u{2190}' && CodePointSetData::new::<ExtendedPictographic>().contains(c)
}

/// What all ways to write `text` have in common.
pub fn fold(text: &str) -> String {
    if text.is_ascii() {
        return text.to_ascii_lowercase();
    }
    // A decomposition may have capitals in it, and a folded letter marks.
    let folded = fold_once(&fold_once(text));
    ComposingNormalizer::new_nfc().normalize(&folded).into_owned()
}

fn fold_once(text: &str) -> String {
    let decomposed = DecomposingNormalizer::new_nfkd().normalize(text).into_owned();
    let plain: String = decomposed.chars().filter(|c| !is_dropped(*c)).map(apostrophe).collect();
    let folded = CaseMapper::new().fold_string(&plain);
    let decomposed = DecomposingNormalizer::new_nfkd().normalize(&folded);
    decomposed.chars().filter(|c| !is_dropped(*c)).collect()
}

/// Diacritics, soft hyphens, and what only chooses how a character looks.
const fn is_dropped(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{ad}' | '\u{fe00}'..='\u{fe0f}')
}

const fn apostrophe(c: char) -> char {
    if matches!(c, '\u{2019}' | '\u{2bc}') { '\'' } else { c }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_of_every_script_are_cut_and_folded() {
        assert_eq!(terms("The Café, the CAFE\u{301}: can’t"), ["the", "cafe", "the", "cafe", "can't"]);
        assert_eq!(terms("Straße ﬁn Ａｄａ ΟΔΌΣ Ёлка"), ["strasse", "fin", "ada", "οδοσ", "елка"]);
        assert_eq!(terms("हिन्दी 한국어"), ["हिन्दी", "한국어"]);
        assert!(terms("私は日本語を話す").contains(&"日本語".to_owned()));
        assert_eq!(terms("#Rust @Ada_L 3.14 ❤️ !?"), ["rust", "ada_l", "3.14", "❤"]);
    }

    #[test]
    fn a_link_is_one_word() {
        assert_eq!(terms("see https://www.Example.org/a/b?c=d, now"), ["see", "example.org", "now"]);
        assert_eq!(terms("日本 http://a.b 語"), ["日本", "a.b", "語"]);
    }

    #[test]
    fn a_word_has_an_end() {
        assert_eq!(terms(&"a".repeat(300)), ["a".repeat(WORD_CHARS_MAX)]);
    }

    proptest! {
        #[test]
        fn a_word_of_a_folded_text_is_found_again(text in any::<String>()) {
            let folded = fold(&text);
            prop_assert_eq!(fold(&folded), folded.clone());
            let (mut once, mut again) = (Vec::new(), Vec::new());
            words(&text, &mut once);
            words(&folded, &mut again);
            prop_assert_eq!(&once, &again);
            prop_assert!(once.iter().all(|word| !word.is_empty() && !word.contains(char::is_whitespace)));
        }
    }
}
