//! Holds `src/` to the layers that `lib.rs` draws: the `use` lines are read, no parser needed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Part → the parts it may name in a `crate::` path, itself aside.
fn allowed() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let base = ["name", "prefix", "source", "clock", "metrics", "wire", "admission"];
    let with = |more: &[&'static str]| base.iter().chain(more).copied().collect::<BTreeSet<_>>();
    BTreeMap::from([
        ("name", BTreeSet::new()),
        ("prefix", BTreeSet::new()),
        ("source", BTreeSet::new()),
        ("clock", BTreeSet::new()),
        ("metrics", BTreeSet::new()),
        ("wire", BTreeSet::from(["name"])),
        ("admission", BTreeSet::from(["prefix"])),
        ("privilege", BTreeSet::new()),
        ("sandbox", BTreeSet::new()),
        ("manager", BTreeSet::new()),
        ("keeper", BTreeSet::from(["clock", "privilege", "manager"])),
        ("catalogue", with(&[])),
        ("cache", with(&[])),
        ("forward", with(&[])),
        ("set", BTreeSet::from(["name", "prefix", "clock", "metrics", "catalogue"])),
        ("store", BTreeSet::from(["set", "name", "clock", "metrics"])),
        ("learn", with(&["set", "catalogue"])),
        ("export", BTreeSet::from(["set", "catalogue", "admission", "name", "prefix", "clock", "metrics"])),
        ("policy", with(&["catalogue"])),
        ("cluster", BTreeSet::from(["learn", "set", "catalogue", "name", "clock", "metrics"])),
        ("pipeline", with(&["policy", "cache", "forward", "catalogue", "learn"])),
        ("warm", with(&["pipeline", "catalogue", "learn"])),
        ("web", with(&["export", "set", "catalogue", "learn"])),
        ("listen", with(&["pipeline"])),
        (
            "config",
            with(&[
                "catalogue",
                "forward",
                "cache",
                "learn",
                "store",
                "cluster",
                "export",
                "warm",
                "web",
                "listen",
                "policy",
                "pipeline",
                "policy",
            ]),
        ),
        ("daemon", BTreeSet::from(["*"])),
        ("cli", BTreeSet::from(["*"])),
        ("lib", BTreeSet::from(["*"])),
        ("main", BTreeSet::from(["*"])),
    ])
}

#[test]
fn parts_import_only_what_their_layer_may() {
    let allowed = allowed();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for file in files(&src) {
        let part = part_of(&src, &file);
        let may = allowed.get(part.as_str()).unwrap_or_else(|| panic!("{}: `{part}` has no layer", file.display()));
        let text = fs::read_to_string(&file).unwrap();
        for name in named(code(&text)) {
            seen.insert(name.clone());
            if name != part && !may.contains("*") && !may.contains(name.as_str()) {
                wrong.push(format!("{}: `{part}` must not import `{name}`", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen.contains("wire") && seen.contains("catalogue"), "the reader of `crate::` paths finds nothing");
}

#[test]
fn hickory_types_stay_where_they_belong() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let homes = ["forward/system.rs", "listen/hickory.rs", "cli/ask.rs", "cli/demo", "policy/"];
    let wrong: Vec<String> = files(&src)
        .into_iter()
        .filter(|file| {
            let place = file.strip_prefix(&src).unwrap().to_string_lossy().into_owned();
            let text = fs::read_to_string(file).unwrap();
            code(&text).contains("hickory_") && !homes.iter().any(|home| place.starts_with(home))
        })
        .map(|file| file.display().to_string())
        .collect();
    assert!(wrong.is_empty(), "hickory types outside of their homes: {wrong:?}");
}

/// One module may use `unsafe`, and one attribute says so; the lint refuses it everywhere else.
#[test]
fn unsafe_code_is_in_one_module() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let manifest = fs::read_to_string(src.join("../Cargo.toml")).unwrap();
    assert!(manifest.contains("unsafe_code = \"deny\""));
    let (mut allowing, mut using) = (Vec::new(), Vec::new());
    for file in files(&src) {
        let place = file.strip_prefix(&src).unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&file).unwrap();
        let code = code(&text);
        allowing.extend(code.matches("(unsafe_code").map(|_| place.clone()));
        let words = || code.split(|c: char| !c.is_alphanumeric() && c != '_');
        if words().any(|word| word == "unsafe") {
            using.push(place.clone());
            let reasons = text.matches("// SAFETY: ").count();
            let blocks = code.matches("unsafe {").count();
            assert_eq!(reasons, blocks, "{place}: each block has its reason");
            assert_eq!(words().filter(|word| *word == "unsafe").count(), blocks, "{place}: blocks only");
        }
    }
    assert_eq!(allowing, ["listen/plain/mod.rs"]);
    assert_eq!(using, ["listen/plain/batch.rs"]);
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    let for_tests: BTreeSet<PathBuf> = found.iter().flat_map(|file| test_modules(file)).collect();
    found.retain(|file| !for_tests.contains(file));
    found
}

/// The files of modules that are declared for tests only: they may use what they like.
fn test_modules(file: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(file).unwrap();
    let folder = match file.file_name().unwrap().to_str().unwrap() {
        "mod.rs" | "lib.rs" => file.parent().unwrap().to_owned(),
        _ => file.with_extension(""),
    };
    text.split("#[cfg(test)]\n")
        .skip(1)
        .filter_map(|after| after.lines().next()?.split_once("mod ")?.1.strip_suffix(';'))
        .map(|name| folder.join(format!("{name}.rs")))
        .collect()
}

/// `src/learn/admit.rs` and `src/learn.rs` belong to `learn`.
fn part_of(src: &Path, file: &Path) -> String {
    let first = file.strip_prefix(src).unwrap().components().next().unwrap();
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// The text without comments and without the unit tests at its end.
fn code(text: &str) -> String {
    let until_tests = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    until_tests.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The parts named in `crate::…` paths, those in braces included.
fn named(code: String) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        if let Some(list) = after.strip_prefix('{') {
            let list: String = list.chars().take_while(|&c| c != ';').collect();
            let mut depth = 0;
            let mut word = String::new();
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' | ' ' | '\n' | ':' if depth == 0 && !word.is_empty() => {
                        names.insert(std::mem::take(&mut word));
                    }
                    _ if depth == 0 && (c.is_alphanumeric() || c == '_') => word.push(c),
                    _ => {}
                }
            }
        } else {
            names.insert(after.chars().take_while(|&c| c.is_alphanumeric() || c == '_').collect());
        }
    }
    // Macros and items of the crate's root are no parts.
    names.retain(|name| allowed().contains_key(name.as_str()));
    names
}
