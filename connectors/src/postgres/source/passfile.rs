//! The password file of libpq, `~/.pgpass`: a line `host:port:database:user:password` each, `*` for any, `\` before a
//! colon or a backslash. The first line that fits counts.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The password for this server and role. As in libpq a file that others may read is not used.
pub(super) fn password(file: &Path, server: [&str; 4]) -> Option<String> {
    let about = fs::metadata(file).ok()?;
    if !about.is_file() {
        return None;
    }
    if about.mode() & 0o077 != 0 {
        tracing::warn!(
            "the password file {path} is not used, because others than its owner may read it: run chmod 0600 {path}",
            path = file.display()
        );
        return None;
    }
    let text = fs::read_to_string(file).ok()?;
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| password_of(line, server))
}

/// The line's password, if the line fits.
fn password_of(line: &str, server: [&str; 4]) -> Option<String> {
    let mut rest = line.chars();
    for wanted in server {
        let (mut field, mut escaped) = (String::new(), false);
        loop {
            match rest.next()? {
                '\\' if !escaped => escaped = true,
                ':' if !escaped => break,
                c => {
                    field.push(c);
                    escaped = false;
                }
            }
        }
        if field != "*" && field != wanted {
            return None;
        }
    }
    let (mut password, mut escaped) = (String::new(), false);
    for c in rest {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            password.push(c);
            escaped = false;
        }
    }
    Some(password)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_first_line_that_fits_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pgpass");
        let lines = "# a comment\n\
                     db:5432:feeds:ada:first\n\
                     db:*:*:ada:a\\:b\\\\c\n\
                     \\:\\:1:5432:feeds:*:six\n\
                     short:line\n";
        fs::write(&file, lines).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        for (server, found) in [
            (["db", "5432", "feeds", "ada"], Some("first")),
            (["db", "5433", "feeds", "ada"], Some("a:b\\c")),
            (["::1", "5432", "feeds", "eve"], Some("six")),
            (["db", "5432", "feeds", "eve"], None),
            (["short", "line", "", ""], None),
        ] {
            assert_eq!(password(&file, server).as_deref(), found, "{server:?}");
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(password(&file, ["db", "5432", "feeds", "ada"]), None);
    }
}
