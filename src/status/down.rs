//! What can be said of a folder on which no process answers.

use std::fs::File;
use std::path::Path;

use super::Format;
use super::table::bytes;

/// Parts of the data folder, and what they are.
const PARTS: [(&str, &str); 5] = [
    ("log", "the change log"),
    ("index", "facts, rows, user timelines, reactions"),
    ("home", "home timelines"),
    ("search", "search"),
    ("postgres/data", "the private PostgreSQL"),
];

/// What is on disk, and whether a process has the folder although it does not answer.
pub fn told(format: Format, data: &Path) -> anyhow::Result<String> {
    let held = File::open(data.join("lock")).is_ok_and(|lock| lock.try_lock().is_err());
    let found: Vec<(&str, &str, u64)> = PARTS
        .iter()
        .filter(|(folder, _)| data.join(folder).is_dir())
        .map(|(folder, what)| (*folder, *what, size(&data.join(folder))))
        .collect();
    if format == Format::Json {
        let disk: serde_json::Map<String, serde_json::Value> =
            found.iter().map(|(folder, _, size)| ((*folder).to_owned(), (*size).into())).collect();
        let told = serde_json::json!({ "status": "down", "starting": held, "diskBytes": disk });
        return Ok(format!("{told}\n"));
    }
    let mut text = match held {
        true => format!(
            "A Feedmill has the folder {} and does not answer: it is just starting, or ending\n",
            data.display()
        ),
        false => {
            format!("No Feedmill runs on {data}: start one with `feedmill up --data {data}`\n", data = data.display())
        }
    };
    for (folder, what, size) in found {
        text += &format!("  {folder:<14} {:>10}  {what}\n", bytes(size));
    }
    Ok(text)
}

/// Bytes of all files below `folder`. What cannot be read counts nothing.
fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
