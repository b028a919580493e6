//! What the text of a tweet names: hashtags, mentions and links.
//!
//! ```text
//!   Ada (@ada) wrote #Rust at https://example.org/#x, twice: #rust
//!        mention      tag      link ─────────────┘           the same tag
//! ```
//!
//! - A word is made of letters, digits and combining marks of any script, and `_`.
//! - A link is `http://` or `https://`, in any case and not in the middle of a word, and what follows up to white space or
//!   one of `<>"`, without punctuation at its end. Nothing else is found inside it.
//! - A hashtag is `#` or `＃` and a word that has a letter or `_`. A mention is `@` or `＠` and a word of at most
//!   [`NAME_CHARS_MAX`] characters. Before the sign stands no character of a word and none of `#＃@＠&/`, so that addresses
//!   of mail and of pages are not taken apart.
//! - Tags are the same if they are so in NFC and after simple case folding. Names are compared as those of users are: only
//!   the case of ASCII letters does not matter.
//!
//! What counts as a letter is written out as ranges of code points, the same for Rust and for the SQL that defines the
//! views: PostgreSQL's own classes depend on its locale.

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::sync::LazyLock;

use icu_casemap::CaseMapper;
use icu_normalizer::ComposingNormalizer;
use icu_properties::props::{GeneralCategory, GeneralCategoryGroup, WhiteSpace};
use icu_properties::{CodePointMapData, CodePointSetData};
use regex::Regex;

/// The longest name that a user can have.
pub const NAME_CHARS_MAX: usize = 30;

/// What begins a hashtag, and a mention.
const HASHES: [char; 2] = ['#', '＃'];
const ATS: [char; 2] = ['@', '＠'];

/// What a text names, each in the order in which it stands there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entities {
    /// Hashtags, as they are written, without the sign.
    pub hashtags: Vec<Entity>,
    /// Names after `@`, as they are written, of users or not.
    pub mentions: Vec<Entity>,
    /// Links.
    pub urls: Vec<Entity>,
}

/// Something that a text names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entity {
    /// How many characters (Unicode scalar values) stand before it, its sign not counted.
    pub start: usize,
    /// How many stand before its end.
    pub end: usize,
    /// What is named, without the sign.
    pub text: String,
}

/// Hashtags, mentions and links, with their places.
pub fn entities(text: &str) -> Entities {
    let mut entities = Entities::default();
    // Few texts have any: a sign, of which the wide ones begin with this byte, or the colon of a link.
    if !text.bytes().any(|byte| matches!(byte, b'#' | b'@' | b':' | 0xEF)) {
        return entities;
    }
    let place = |byte| text.get(..byte).map_or(0, |before| before.chars().count());
    scan(text, |found, range| {
        let signed = usize::from(!matches!(found, Found::Url));
        let (start, end) = (place(range.start) - signed, place(range.end));
        let entity = Entity { start, end, text: text.get(range).unwrap_or_default().to_owned() };
        match found {
            Found::Hashtag => entities.hashtags.push(entity),
            Found::Mention => entities.mentions.push(entity),
            Found::Url => entities.urls.push(entity),
        }
    });
    entities
}

/// The hashtags, folded, each once.
pub fn hashtags(text: &str) -> BTreeSet<String> {
    let mut tags = BTreeSet::new();
    // Few texts have any.
    if !text.contains(HASHES) {
        return tags;
    }
    scan(text, |found, range| {
        if let (Found::Hashtag, Some(tag)) = (found, text.get(range)) {
            tags.insert(fold_tag(tag));
        }
    });
    tags
}

/// Whether `tag` can be a hashtag, without its sign.
pub fn is_hashtag(tag: &str) -> bool {
    let mut is_tag = false;
    let signed = format!("#{tag}");
    scan(&signed, |found, range| is_tag |= matches!(found, Found::Hashtag) && range.len() == tag.len());
    is_tag
}

/// The names mentioned, with ASCII letters in lower case, each once.
pub fn mentions(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    if !text.contains(ATS) {
        return names;
    }
    scan(text, |found, range| {
        if let (Found::Mention, Some(name)) = (found, text.get(range)) {
            names.insert(name.to_ascii_lowercase());
        }
    });
    names
}

/// What all ways to write a tag have in common.
pub fn fold_tag(tag: &str) -> String {
    let (nfc, cases) = (ComposingNormalizer::new_nfc(), CaseMapper::new());
    let folded: String = nfc.normalize_iter(tag.chars()).map(|c| cases.simple_fold(c)).collect();
    nfc.normalize(&folded).into_owned()
}

/// Classes of characters and patterns, as both Rust and PostgreSQL read them when `escape` writes a code point as theirs.
#[derive(Clone, Debug)]
pub struct Patterns {
    /// A link, after a first group that is not part of it.
    pub url: String,
    /// A hashtag; the group is what follows the sign.
    pub hashtag: String,
    /// A mention; the group is what follows the sign.
    pub mention: String,
    /// A tag that is one.
    pub tag: String,
}

impl Patterns {
    /// With code points as `escape` writes them.
    pub fn new(escape: fn(u32) -> String) -> Self {
        let group = |group| ranges(escape, CodePointMapData::<GeneralCategory>::new().iter_ranges_for_group(group));
        let letter = format!("{}_", group(GeneralCategoryGroup::Letter));
        let word =
            format!("{letter}{}{}", group(GeneralCategoryGroup::Mark), group(GeneralCategoryGroup::DecimalNumber));
        let space = ranges(escape, CodePointSetData::new::<WhiteSpace>().iter_ranges());
        let sign = |signs: &[char]| signs.iter().map(|sign| escape(*sign as u32)).collect::<String>();
        let (hash, at) = (sign(&HASHES), sign(&ATS));
        let outside = format!("{space}{}", sign(&['<', '>', '"']));
        let at_its_end = sign(&['.', ',', ';', ':', '!', '?', '\'', ')', ']', '}', '…', '’', '”', '»']);
        let before = format!("(?:^|[^{word}{hash}{at}{}])", sign(&['&', '/']));
        Patterns {
            url: format!("(^|[^{word}])[hH][tT][tT][pP][sS]?://[^{outside}]*[^{outside}{at_its_end}]"),
            hashtag: format!("{before}[{hash}]([{word}]+)"),
            mention: format!("{before}[{at}]([{word}]+)"),
            tag: format!("[{letter}]"),
        }
    }
}

/// A code point in a pattern of Rust's.
fn in_rust(code_point: u32) -> String {
    format!("\\x{{{code_point:x}}}")
}

/// A code point in a pattern of PostgreSQL's.
pub fn in_postgres(code_point: u32) -> String {
    format!("\\U{code_point:08X}")
}

/// Pairs of characters of which the first is folded to the second.
pub fn simple_folds() -> impl Iterator<Item = (char, char)> {
    let cases = CaseMapper::new();
    let all = (char::MIN..=char::MAX).map(move |c| (c, cases.simple_fold(c)));
    all.filter(|(c, folded)| c != folded)
}

fn ranges(escape: fn(u32) -> String, ranges: impl Iterator<Item = RangeInclusive<u32>>) -> String {
    let range = |range: RangeInclusive<u32>| match (*range.start(), *range.end()) {
        (start, end) if start == end => escape(start),
        (start, end) => format!("{}-{}", escape(start), escape(end)),
    };
    ranges.map(range).collect()
}

/// The patterns, compiled.
struct Compiled {
    url: Regex,
    hashtag: Regex,
    mention: Regex,
    tag: Regex,
}

static COMPILED: LazyLock<Result<Compiled, regex::Error>> = LazyLock::new(|| {
    let patterns = Patterns::new(in_rust);
    Ok(Compiled {
        url: Regex::new(&patterns.url)?,
        hashtag: Regex::new(&patterns.hashtag)?,
        mention: Regex::new(&patterns.mention)?,
        tag: Regex::new(&patterns.tag)?,
    })
});

#[derive(Clone, Copy)]
enum Found {
    Hashtag,
    Mention,
    Url,
}

/// Calls `found` with each link, and with what follows the sign of each tag and mention.
fn scan(text: &str, mut found: impl FnMut(Found, Range<usize>)) {
    let Ok(patterns) = &*COMPILED else { return };
    let mut from = 0;
    // To look for a character is far cheaper than to look for a pattern.
    let urls = text.contains("://").then(|| patterns.url.captures_iter(text));
    for url in urls.into_iter().flatten() {
        let (Some(all), Some(before)) = (url.get(0), url.get(1)) else { continue };
        words(patterns, text, from..before.end(), &mut found);
        found(Found::Url, before.end()..all.end());
        from = all.end();
    }
    words(patterns, text, from..text.len(), &mut found);
}

/// The same in a part of the text that has no links.
fn words(patterns: &Compiled, text: &str, part: Range<usize>, found: &mut impl FnMut(Found, Range<usize>)) {
    let Some(words) = text.get(part.clone()) else { return };
    let groups = |pattern: &Regex, signs: [char; 2]| {
        let groups = words.contains(signs).then(|| pattern.captures_iter(words).filter_map(|all| all.get(1)));
        groups.into_iter().flatten().collect::<Vec<_>>()
    };
    let place = |word: &regex::Match<'_>| part.start + word.start()..part.start + word.end();
    for word in groups(&patterns.hashtag, HASHES).iter().filter(|word| patterns.tag.is_match(word.as_str())) {
        found(Found::Hashtag, place(word));
    }
    for word in groups(&patterns.mention, ATS).iter().filter(|word| word.as_str().chars().count() <= NAME_CHARS_MAX) {
        found(Found::Mention, place(word));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tags(text: &str) -> Vec<String> {
        hashtags(text).into_iter().collect()
    }

    fn names(text: &str) -> Vec<String> {
        mentions(text).into_iter().collect()
    }

    #[test]
    fn c41_tags_of_every_script() {
        let text = "#Rust #rust #ПРИВЕТ #日本語 #한국어 #العربية #हिन्दी #ไทย #ΟΔΌΣ #οδός ＃全角 #café #cafe\u{301} #a_b #9lives #_";
        let mut expected = vec![
            "rust",
            "привет",
            "日本語",
            "한국어",
            "العربية",
            "हिन्दी",
            "ไทย",
            "οδόσ",
            "全角",
            "café",
            "a_b",
            "9lives",
            "_",
        ];
        expected.sort_unstable();
        assert_eq!(tags(text), expected);
    }

    #[test]
    fn c41_what_is_no_tag() {
        for text in [
            "#",
            "# a",
            "#1",
            "#2024",
            "##",
            "a#b",
            "1#b",
            "_#b",
            "&#x27;",
            "#1\u{fe0f}\u{20e3}",
            "#❤\u{fe0f}",
            "##a",
            "http://a.b/#c",
            "HTTPS://a.b/c?d=#e,#f",
            "a.b/#c",
            "@#a",
            "#-",
            "é#b",
            "e\u{301}#b",
        ] {
            assert_eq!(tags(text), [""; 0], "{text}");
            assert!(!is_hashtag(text.strip_prefix('#').unwrap_or(text)), "{text}");
        }
    }

    #[test]
    fn c41_adjacent_repeated_and_long_tags() {
        assert_eq!(tags("#a#b"), ["a"]);
        assert_eq!(tags("#a,#b;(#c)\"#d\"#e-#f\n#g. #a"), ["a", "b", "c", "d", "e", "f", "g"]);
        assert_eq!(tags("#a-b"), ["a"]);
        assert_eq!(tags("http://a.b #c"), ["c"]);
        let long = "ß".repeat(100);
        assert_eq!(tags(&format!("#{long}")), [long]);
    }

    #[test]
    fn c41_mentions() {
        assert_eq!(names("@Ada and @ada, (@bob_2) ＠京子: @ärger @Ä"), ["ada", "bob_2", "Ä", "ärger", "京子"]);
        for text in ["@", "a@b.c", "@@a", "http://a.b/@c", "a.b/@c", "#@a", &format!("@{}", "a".repeat(31))] {
            assert_eq!(names(text), [""; 0], "{text}");
        }
        assert_eq!(names(&format!("@{}", "a".repeat(30))), ["a".repeat(30)]);
    }

    #[test]
    fn places_count_characters() {
        let text = "日本 #Tag, see (http://a.b/c#d). ＠Ada";
        let found = entities(text);
        let entity = |start, end, text: &str| Entity { start, end, text: text.to_owned() };
        assert_eq!(found.hashtags, [entity(3, 7, "Tag")]);
        assert_eq!(found.urls, [entity(14, 28, "http://a.b/c#d")]);
        assert_eq!(found.mentions, [entity(31, 35, "Ada")]);
    }

    #[test]
    fn a_link_ends_before_punctuation_and_begins_with_no_word() {
        let urls = |text| entities(text).urls.into_iter().map(|url| url.text).collect::<Vec<_>>();
        assert_eq!(urls("see http://a.b/c, https://d.e!"), ["http://a.b/c", "https://d.e"]);
        assert_eq!(urls("xhttp://a.b http:// <HTTP://c.d>"), ["HTTP://c.d"]);
    }

    /// Texts that are full of what matters.
    fn texts() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            Just("#"),
            Just("＃"),
            Just("@"),
            Just("＠"),
            Just(" "),
            Just("a"),
            Just("Ä"),
            Just("1"),
            Just("_"),
            Just("/"),
            Just("&"),
            Just("\u{301}"),
            Just("http://"),
            Just("x.y"),
            Just("日"),
            Just("\u{3000}"),
            Just(","),
            Just("😀"),
        ];
        prop_oneof![prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat()), any::<String>()]
    }

    proptest! {
        #[test]
        fn what_is_found_stands_at_its_place(text in texts()) {
            let characters: Vec<char> = text.chars().collect();
            let found = entities(&text);
            for (signed, entity) in found.hashtags.iter().chain(&found.mentions).map(|entity| (1, entity))
                .chain(found.urls.iter().map(|entity| (0, entity)))
            {
                let there: String = characters[entity.start + signed..entity.end].iter().collect();
                prop_assert_eq!(&there, &entity.text);
            }
            prop_assert_eq!(hashtags(&text), found.hashtags.iter().map(|tag| fold_tag(&tag.text)).collect());
        }

        #[test]
        fn a_tag_is_found_again_however_it_is_written(text in texts()) {
            for tag in hashtags(&text) {
                prop_assert!(is_hashtag(&tag));
                prop_assert_eq!(fold_tag(&tag), tag.clone());
                prop_assert_eq!(tags(&format!("({})", format_args!("#{tag}"))), vec![tag]);
            }
        }
    }
}
