//! The manual of the API: it names every operation, object and problem as the code has them, and its examples run.
//!
//! ```text
//!   docs/api.md ── headings, examples (written by hand) ─┐
//!   /openapi.json ── what each operation takes and gives ─┴─► docs/api.md as it must be
//! ```
//!
//! `UPDATE=1 make test ARGS="--test end_to_end -- manual"` writes it anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::system::System;

const MANUAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md");

/// What stands under a heading of the third level: the example.
fn example(section: &str) -> Option<&str> {
    let (_, example) = section.split_once("```sh\n")?;
    Some(example.split_once("```")?.0)
}

/// The last part of `#/components/schemas/Name`.
fn named(schema: &Value) -> Option<&str> {
    schema["$ref"].as_str()?.rsplit('/').next()
}

/// A type in one or two words, with its bounds.
fn kind(schema: &Value) -> String {
    if let Some(name) = named(schema) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    for (choice, word) in [("oneOf", " or "), ("anyOf", " or "), ("allOf", " and ")] {
        if let Some(choices) = schema[choice].as_array() {
            let kinds: Vec<String> = choices.iter().map(kind).collect();
            return kinds.join(word);
        }
    }
    let name = match &schema["type"] {
        Value::String(name) if name == "array" => format!("list of {}", kind(&schema["items"])),
        Value::String(name) => name.clone(),
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
        _ => "any".to_owned(),
    };
    let mut bounds = Vec::new();
    if let Some(values) = schema["enum"].as_array() {
        bounds.push(
            values
                .iter()
                .map(|value| format!("`{}`", value.as_str().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join(", "),
        );
    }
    for (least, most, unit) in
        [("minLength", "maxLength", " characters"), ("minimum", "maximum", ""), ("minItems", "maxItems", " items")]
    {
        match (schema[least].as_u64(), schema[most].as_u64()) {
            (Some(least), Some(most)) => bounds.push(format!("{least} to {most}{unit}")),
            (None, Some(most)) => bounds.push(format!("at most {most}{unit}")),
            _ => {}
        }
    }
    if bounds.is_empty() { name } else { format!("{name}, {}", bounds.join(", ")) }
}

fn line(text: &Value) -> String {
    text.as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// What an operation takes and gives.
fn operation(operation: &Value) -> String {
    let mut text = String::new();
    writeln!(text, "{}\n", line(&operation["summary"])).unwrap();
    if let Some(description) = operation["description"].as_str() {
        for paragraph in description.split("\n\n") {
            writeln!(text, "{}\n", line(&paragraph.into())).unwrap();
        }
    }
    let open = operation["security"].as_array().is_none_or(|ways| ways.iter().any(|way| way == &serde_json::json!({})));
    let by_ticket = operation["security"].as_array().into_iter().flatten().any(|way| way.get("ticket").is_some());
    let signed_in = if by_ticket { "With a token, or with `?ticket=`." } else { "With a token." };
    writeln!(text, "{}\n", if open { "Without a token too." } else { signed_in }).unwrap();
    // What many operations share is a reference, and is told once, among the conventions.
    let is_own = |part: &&Value| part.get("$ref").is_none();
    let parameters = operation["parameters"].as_array().into_iter().flatten().filter(is_own);
    let mut rows: Vec<String> = parameters
        .map(|parameter| {
            let required = if parameter["required"] == true { ", required" } else { "" };
            format!(
                "| `{}` | {}{required} | {} | {} |",
                parameter["name"].as_str().unwrap(),
                parameter["in"].as_str().unwrap(),
                kind(&parameter["schema"]),
                line(&parameter["description"]),
            )
        })
        .collect();
    if let Some(body) = operation["requestBody"]["content"].as_object() {
        let schema = body.values().next().map_or(Value::Null, |content| content["schema"].clone());
        rows.push(format!(
            "| | body, required | {} | {} |",
            kind(&schema),
            line(&operation["requestBody"]["description"])
        ));
    }
    if !rows.is_empty() {
        writeln!(text, "| takes | in | is | |\n|---|---|---|---|\n{}\n", rows.join("\n")).unwrap();
    }
    writeln!(text, "| answers | with | |\n|---|---|---|").unwrap();
    for (status, answer) in operation["responses"].as_object().unwrap().iter().filter(|(_, answer)| is_own(answer)) {
        let content = answer["content"].as_object().and_then(|content| content.values().next());
        let with = content.map_or(String::new(), |content| kind(&content["schema"]));
        let status = if status == "default" { "else" } else { status };
        writeln!(text, "| {status} | {with} | {} |", line(&answer["description"])).unwrap();
    }
    text
}

/// The fields of an object, or the values of an enumeration.
fn object(name: &str, schema: &Value) -> String {
    let mut text = format!("### {name}\n\n");
    let description = line(&schema["description"]);
    if !description.is_empty() {
        writeln!(text, "{description}\n").unwrap();
    }
    let mut parts = vec![schema];
    parts.extend(schema["allOf"].as_array().into_iter().flatten());
    let mut rows = Vec::new();
    for part in parts {
        let required: Vec<&str> = part["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (field, is) in part["properties"].as_object().into_iter().flatten() {
            let always = if required.contains(&field.as_str()) { "" } else { ", may be absent" };
            rows.push(format!("| `{field}` | {}{always} | {} |", kind(is), line(&is["description"])));
        }
        if let Some(whole) = named(part) {
            rows.push(format!("| | all of [{whole}](#{}) | |", whole.to_lowercase()));
        }
    }
    if rows.is_empty() {
        writeln!(text, "{}\n", kind(schema)).unwrap();
    } else {
        writeln!(text, "| field | is | |\n|---|---|---|\n{}\n", rows.join("\n")).unwrap();
    }
    text
}

/// The codes of all kinds of problems, from the code.
fn problems() -> Vec<String> {
    let words: String = include_str!("../../api/src/problem.rs").split_whitespace().collect::<Vec<_>>().join(" ");
    let code = |part: &str| Some(part.split_once(", \"")?.1.split_once('"')?.0.to_owned());
    let codes: Vec<String> = words.split("(Is::").skip(1).filter_map(code).collect();
    assert!(codes.len() > 20, "the kinds of problems could not be read");
    codes
}

/// The manual as it must be: what was written by hand stays.
fn as_it_must_be(manual: &str, document: &Value) -> String {
    let mut missing: BTreeMap<String, &Value> = BTreeMap::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            missing.insert(format!("{} {path}", method.to_uppercase()), operation);
        }
    }
    let (by_hand, _) = manual.split_once("## Objects\n").expect("the manual has a heading `Objects`");
    let (conventions, operations) = by_hand.split_once("\n## Accounts\n").expect("the manual has a heading `Accounts`");
    let mut sections = operations.split("\n### ");
    sections.next();
    let mut text = format!("{conventions}\n## Accounts");
    for section in sections {
        let (heading, rest) = section.split_once('\n').unwrap_or((section, ""));
        let described =
            missing.remove(heading).unwrap_or_else(|| panic!("the API has no {heading}, of which the manual tells"));
        let example = example(rest).unwrap_or_else(|| panic!("the manual has no example of {heading}"));
        // A chapter may end here.
        let after = rest.rsplit_once("```\n").map_or("", |(_, after)| after.trim());
        write!(text, "\n\n### {heading}\n\n{}\n```sh\n{example}```", operation(described)).unwrap();
        if !after.is_empty() {
            write!(text, "\n\n{after}").unwrap();
        }
    }
    let missing: Vec<&String> = missing.keys().collect();
    assert!(missing.is_empty(), "docs/api.md has no heading and example of {missing:?}");
    text.push_str("\n\n## Objects\n\n");
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        text.push_str(&object(name, schema));
    }
    let untold: Vec<String> = problems().into_iter().filter(|code| !text.contains(&format!("| `{code}` |"))).collect();
    assert!(untold.is_empty(), "the table of problems in docs/api.md lacks {untold:?}");
    text.trim_end().to_owned() + "\n"
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manual_of_the_api_is_that_of_the_code_and_its_examples_run() {
    let system = System::start(&[]).await;
    let document = system.get("/openapi.json", None).await.body;
    let manual = std::fs::read_to_string(MANUAL).unwrap();
    let text = as_it_must_be(&manual, &document);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(MANUAL, &text).unwrap();
    } else {
        let update = "UPDATE=1 make test ARGS=\"--test end_to_end -- manual\"";
        assert!(manual == text, "docs/api.md is not that of the code: run {update}");
    }

    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join(".curlrc"), "silent\nshow-error\nfail-with-body\nmax-time = 60\n").unwrap();
    let script: String = text.split("```sh\n").skip(1).filter_map(|block| Some(block.split_once("```")?.0)).collect();
    // Each command is told of, so that the one that fails is the last.
    let mut command = Command::new("bash");
    command
        .args(["-eu", "-o", "pipefail", "-x", "-c", &script])
        .env("FEEDMILL", &system.url)
        .env("CURL_HOME", home.path());
    let run = command.stdin(Stdio::null()).output();
    let output = tokio::task::spawn_blocking(move || run).await.unwrap().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{told}", String::from_utf8_lossy(&output.stdout));
    system.verified().await;
}
