//! What an account may be named, and what it may say about itself.

use std::ops::RangeInclusive;

use crate::media::{URL_MAX, is_https};
use crate::problem::{Kind, Problem};

/// Characters of a username; the schema says the same.
const USERNAME_MAX: usize = 30;
/// What the paths of the API mean by another name.
const RESERVED: &str = "me";
/// Characters of a name as shown.
const DISPLAY_NAME_MAX: usize = 50;
/// Characters of what an account says about itself.
const BIO_MAX: usize = 160;
/// Characters of an address, by RFC 5321.
const EMAIL_MAX: usize = 254;
/// Characters of a password: as few as NIST SP 800-63B allows, and no more than are worth hashing.
const PASSWORD_CHARACTERS: RangeInclusive<usize> = 8..=128;

fn wrong(field: &'static str, rule: String) -> Result<(), Problem> {
    Err(Kind::InvalidField.because(rule).field(field))
}

pub(crate) fn check_username(name: &str) -> Result<(), Problem> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || name.len() > USERNAME_MAX || !name.bytes().all(plain) {
        return wrong("username", format!("username has 1 to {USERNAME_MAX} letters a–z, digits and underscores."));
    }
    if name.eq_ignore_ascii_case(RESERVED) {
        return wrong("username", format!("{name} is no username: /api/users/{RESERVED} is whoever asks."));
    }
    Ok(())
}

pub(crate) fn check_email(email: &str) -> Result<(), Problem> {
    let visible = !email.chars().any(|c| c.is_whitespace() || c.is_control());
    let is_address = |(local, domain): (&str, &str)| !local.is_empty() && !domain.is_empty();
    if email.chars().count() > EMAIL_MAX || !visible || !email.rsplit_once('@').is_some_and(is_address) {
        return wrong("email", format!("email is an address of at most {EMAIL_MAX} characters."));
    }
    Ok(())
}

pub(crate) fn check_password(password: &str, field: &'static str) -> Result<(), Problem> {
    if !PASSWORD_CHARACTERS.contains(&password.chars().count()) {
        let (least, most) = (PASSWORD_CHARACTERS.start(), PASSWORD_CHARACTERS.end());
        return wrong(field, format!("{field} has {least} to {most} characters."));
    }
    Ok(())
}

pub(crate) fn check_display_name(name: &str) -> Result<(), Problem> {
    // Unicode's separators of lines and paragraphs are no control characters.
    let breaks_line = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    if name.trim().is_empty() || name.chars().count() > DISPLAY_NAME_MAX || name.chars().any(breaks_line) {
        return wrong("displayName", format!("displayName has 1 to {DISPLAY_NAME_MAX} characters on one line."));
    }
    Ok(())
}

pub(crate) fn check_bio(bio: &str) -> Result<(), Problem> {
    if bio.chars().count() > BIO_MAX || bio.chars().any(|c| c.is_control() && c != '\n') {
        return wrong("bio", format!("bio has at most {BIO_MAX} characters; of those that are not seen, line feeds."));
    }
    Ok(())
}

pub(crate) fn check_avatar_url(url: &str) -> Result<(), Problem> {
    if !is_https(url) {
        return wrong("avatarUrl", format!("avatarUrl is one of https, of at most {URL_MAX} characters."));
    }
    Ok(())
}
