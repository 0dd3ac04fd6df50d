//! The catalogue as a whole: the shipped lists, the good and the bad zones of `tests/zones/`, the match.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::civil::{Date, date};
use proptest::prelude::*;

use super::*;
use crate::source::{Problem, Problems};

fn today() -> Date {
    date(2026, 11, 24)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn name(text: &str) -> Name {
    Name::parse(text).unwrap()
}

/// Compiles lists given as file name and text.
fn lists(files: &[(&str, &str)]) -> Result<Loaded, Problems> {
    lists_with(files, &Options::default())
}

fn lists_with(files: &[(&str, &str)], options: &Options) -> Result<Loaded, Problems> {
    compile(files.iter().map(|&(file, text)| (file, text.as_bytes())), options, today())
}

fn lines(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(Problem::to_string).collect()
}

/// The apps and triggers that want a name, `app trigger`, most specific first.
fn hits(catalogue: &Catalogue, asked: &str) -> Vec<String> {
    let Some(id) = catalogue.find(&name(asked)) else { return Vec::new() };
    catalogue.tag(id).apps().iter().map(|hit| format!("{} {}", hit.app, hit.trigger)).collect()
}

// The shipped lists.

fn shipped() -> Loaded {
    load(&Options { path: root().join("zones"), ..Options::default() }, today()).unwrap()
}

fn seed(file: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("tests/seed").join(file)).unwrap();
    text.lines().map(str::to_ascii_lowercase).collect()
}

#[test]
fn shipped_lists_hold_the_seed_exactly() {
    let Loaded { catalogue, .. } = shipped();
    let counts = fs::read_to_string(root().join("tests/seed/counts.txt")).unwrap();
    let found: String = catalogue
        .apps()
        .iter()
        .fold(String::new(), |text, app| text + &format!("{} {} {}\n", app.id, app.name_count, app.prefix_count));
    assert_eq!(found, counts);
    let names: BTreeSet<String> = catalogue.names().map(|listed| listed.name.to_string()).collect();
    assert_eq!(names, seed("consolidated-domains.txt"));
    let prefixes: BTreeSet<String> = catalogue.prefixes().iter().map(|listed| listed.prefix.to_string()).collect();
    assert_eq!(prefixes, seed("consolidated-cidrs.txt"));
    assert_eq!((catalogue.apps().len(), catalogue.name_count(), catalogue.prefixes().len()), (16, 320, 35));
    assert_eq!(catalogue.trigger_count(), 355);
}

#[test]
fn shipped_lists_say_what_they_are() {
    let Loaded { catalogue, .. } = shipped();
    for app in catalogue.apps() {
        assert_ne!(app.title, app.id.as_str(), "{}", app.id);
        assert!(app.source.is_some() && app.reason.is_some(), "{}", app.id);
        assert_eq!(app.retrieved, Some(date(2026, 11, 24)), "{}", app.id);
    }
    assert_eq!(hits(&catalogue, "x.LOGMEIN123.com"), ["goto LogMeIn123.com"]);
}

#[test]
fn report_counts_the_shipped_lists() {
    let loaded = shipped();
    assert_eq!(loaded.counts.overlaps, 33);
    let report = report(&loaded).to_string();
    assert!(report.contains("16 apps, 320 names, 35 prefixes in all"), "{report}");
    assert!(report.contains("warning: 33 pairs of a trigger inside another\n"), "{report}");
    assert!(report.contains("\nwebex                    17        0       26        43  Cisco WebEx\n"), "{report}");
    let told: Vec<&Problem> =
        loaded.warnings.iter().filter(|warning| warning.message.contains(" lies inside ")).collect();
    assert_eq!(told.len(), 33);
    for cloud in [
        "google.com",
        "googleapis.com",
        "github.com",
        "githubusercontent.com",
        "sharepoint.com",
        "digicert.com",
        "firebaseapp.com",
    ] {
        let says = format!("`{cloud}` opens names of strangers: ");
        assert!(loaded.warnings.iter().any(|warning| warning.message.starts_with(&says)), "{cloud}");
    }
}

// Good and bad files.

/// Every file of a folder under `tests/zones/` with one of our endings.
fn zone_files(folder: &str) -> Vec<PathBuf> {
    let folder = root().join("tests/zones").join(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "list" || ending == "rpz"));
    files.sort();
    assert!(!files.is_empty());
    files
}

/// Compares `found` with the file beside a zone; with `GREENLANE_BLESS` set, writes that file instead.
fn assert_golden(zone: &Path, found: &str) {
    let golden = PathBuf::from(format!("{}.expected", zone.display()));
    if std::env::var_os("GREENLANE_BLESS").is_some() {
        fs::write(&golden, found).unwrap();
    }
    let expected = fs::read_to_string(&golden).unwrap_or_default();
    assert!(found == expected, "{}: found\n{found}\nexpected\n{expected}", golden.display());
}

fn compile_alone(zone: &Path) -> Result<Loaded, Problems> {
    let bytes = fs::read(zone).unwrap();
    let file = zone.file_name().unwrap().to_str().unwrap();
    compile([(file, bytes.as_slice())], &Options::default(), today())
}

#[test]
fn bad_zones_give_their_messages() {
    for zone in zone_files("bad") {
        let problems = compile_alone(&zone).expect_err(&zone.display().to_string());
        assert_golden(&zone, &format!("{problems}\n"));
    }
}

#[test]
fn good_zones_give_their_triggers() {
    for zone in zone_files("good") {
        let loaded = compile_alone(&zone).unwrap_or_else(|problems| panic!("{problems}"));
        let mut found = String::new();
        for app in loaded.catalogue.apps() {
            writeln!(found, "title {}", app.title).unwrap();
            writeln!(found, "keys {:?} {:?} {:?} {:?}", app.source, app.retrieved, app.review_by, app.reason).unwrap();
            writeln!(found, "counts {} {} {}", app.name_count, app.exception_count, app.prefix_count).unwrap();
        }
        for listed in loaded.catalogue.names() {
            writeln!(found, "{} {:?} {} {}", listed.location, listed.kind, listed.name, listed.written).unwrap();
        }
        for listed in loaded.catalogue.prefixes() {
            let by = listed.tag.primary();
            writeln!(found, "{} {} {}", by.location, listed.prefix, by.trigger).unwrap();
        }
        for warning in &loaded.warnings {
            writeln!(found, "warning {warning}").unwrap();
        }
        assert_golden(&zone, &found);
    }
}

#[test]
fn all_files_tell_their_problems_in_one_run() {
    let problems =
        lists(&[("z/b.list", "com\nok.example\na b"), ("z/a.list", "x..y"), ("z/c.rpz", "x CNAMF y")]).unwrap_err();
    let places: Vec<String> = problems.0.iter().map(|problem| problem.location.to_string()).collect();
    assert_eq!(places, ["z/a.list:1:1", "z/b.list:1:1", "z/b.list:3:1", "z/c.rpz:1:3"]);
}

#[test]
fn file_names_become_ids() {
    let problems =
        lists(&[("z/Zoom US.list", ""), ("z/a.rpz", ""), ("z/a.list", ""), ("z/README.md", "x..y")]).unwrap_err();
    assert_eq!(
        lines(&problems.0),
        [
            "z/Zoom US.list: `Zoom US` is no app id, expected a file name of lower-case letters, digits and `-` (at most 63), such as `zoom-us.list`",
            "z/a.list: app `a` has the list z/a.rpz already, expected one file for each app; put both into one",
        ]
    );
}

#[test]
fn bounds_are_refused_with_their_place() {
    let long = format!("ok.example\n{}\ncom\n", "a.example,".repeat(LINE_LEN_MAX / 10 + 1));
    let problems = lists(&[("a.list", &long)]).unwrap_err();
    assert_eq!(
        lines(&problems.0)[0],
        format!(
            "a.list:2:1: line of {} octets, at most {LINE_LEN_MAX} are read; break it at a comma",
            (LINE_LEN_MAX / 10 + 1) * 10
        )
    );
    assert_eq!(problems.0.len(), 2);
    let many = "a b\n".repeat(MESSAGES_MAX + 5);
    let problems = lists(&[("a.list", &many)]).unwrap_err();
    assert_eq!(problems.0.len(), MESSAGES_MAX + 1);
    assert_eq!(lines(&problems.0)[0], "a.list: 5 more problems in this file than the 1000 told");
}

#[test]
fn folder_is_read_as_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| fs::write(folder.path().join(file), text).unwrap();
    write("one.list", "one.example\n");
    write("two.rpz", "two.example CNAME rpz-passthru.\n");
    write(".hidden.list", "com\n");
    write("notes.txt", "com\n");
    let options = Options { path: folder.path().to_path_buf(), ..Options::default() };
    let Loaded { catalogue, warnings, .. } = load(&options, today()).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(catalogue.apps().iter().map(|app| app.id.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(&*catalogue.apps()[0].file, folder.path().join("one.list").to_str().unwrap());

    fs::create_dir(folder.path().join("three.list")).unwrap();
    let problems = load(&options, today()).unwrap_err();
    assert_eq!(
        lines(&problems.0),
        [format!("{}: is not a regular file; move it out of the folder", folder.path().join("three.list").display())]
    );
}

#[test]
fn missing_folder_is_one_problem_with_its_remedy() {
    let options = Options { path: "no/such/folder".into(), ..Options::default() };
    let problems = load(&options, today()).unwrap_err();
    assert_eq!(
        lines(&problems.0),
        [
            "no/such/folder: folder of lists cannot be read: No such file or directory (os error 2); create it, or point `catalogue.path` at the folder of `.list` files"
        ]
    );
}

#[test]
fn empty_folder_is_no_problem() {
    let Loaded { catalogue, warnings, .. } = lists(&[]).unwrap();
    assert!(catalogue.is_empty());
    assert_eq!(lines(&warnings), ["zones: no `.list` or `.rpz` file here, nothing will match"]);
    assert!(Catalogue::default().is_empty());
    assert_eq!(Catalogue::default().find(&name("a.example")), None);
    assert_eq!(Catalogue::default().find(&Name::root()), None);
}

// The match.

#[test]
fn most_specific_trigger_of_an_app_decides() {
    let list = "a.example\n!b.a.example\nc.b.a.example\n=d.example\n*.e.example\n*.both.example\nboth.example\n";
    let Loaded { catalogue, .. } = lists(&[("app.list", list)]).unwrap();
    for (asked, by) in [
        ("a.example", "app a.example"),
        ("x.a.example", "app a.example"),
        ("b.a.example", ""),
        ("x.b.a.example", ""),
        ("c.b.a.example", "app c.b.a.example"),
        ("x.y.c.b.a.example", "app c.b.a.example"),
        ("d.example", "app =d.example"),
        ("x.d.example", ""),
        ("e.example", ""),
        ("x.e.example", "app *.e.example"),
        ("both.example", "app both.example"),
        ("x.both.example", "app *.both.example"),
        ("xa.example", ""),
        ("example", ""),
    ] {
        assert_eq!(hits(&catalogue, asked).join(" "), by, "{asked}");
    }
}

#[test]
fn name_carries_every_app_that_says_yes() {
    let Loaded { catalogue, .. } = lists(&[
        ("b.list", "example.net\n"),
        ("a.list", "example.net\n!files.example.net\n"),
        ("c.list", "=www.example.net\n*.example.net\n"),
        ("d.list", "www.example.net\n"),
    ])
    .unwrap();
    assert_eq!(hits(&catalogue, "example.net"), ["a example.net", "b example.net"]);
    assert_eq!(
        hits(&catalogue, "www.example.net"),
        ["c =www.example.net", "d www.example.net", "a example.net", "b example.net"]
    );
    assert_eq!(hits(&catalogue, "files.example.net"), ["c *.example.net", "b example.net"]);
    let id = |asked| catalogue.find(&name(asked)).unwrap();
    assert_eq!(id("x.example.net"), id("y.z.example.net"), "equal results are one match");
}

#[test]
fn never_speaks_for_all_apps_from_there_down() {
    let options = Options { never: vec!["bank.Example.".into()], ..Options::default() };
    let files = [("a.list", "example.com\nbank.example\n"), ("b.list", "deep.www.bank.example\n!no.bank.example\n")];
    let Loaded { catalogue, .. } = lists_with(&files, &options).unwrap();
    for asked in ["bank.example", "www.bank.example", "deep.www.bank.example", "x.deep.www.bank.example"] {
        assert_eq!(catalogue.find(&name(asked)), None, "{asked}");
    }
    assert!(catalogue.find(&name("example.com")).is_some());
    let decisions = catalogue.decide(&name("x.deep.www.bank.example"));
    let told: Vec<String> =
        decisions.iter().map(|d| format!("{} {:?} {} {}", d.app, d.verdict, d.trigger, d.location)).collect();
    assert_eq!(told, ["a Never bank.example catalogue.never", "b Never bank.example catalogue.never"]);
}

#[test]
fn bad_never_names_are_problems() {
    let options = Options { never: vec!["*.a.example".into(), "x..y".into(), "gov".into()], ..Options::default() };
    assert_eq!(
        lines(&lists_with(&[], &options).unwrap_err().0),
        [
            "catalogue.never: `*.a.example`: a sign has no meaning here, expected a name such as `a.example`, which speaks from there down",
            "catalogue.never: `x..y`: empty label, expected one dot between two labels and none in front",
        ]
    );
}

#[test]
fn decisions_say_yes_and_no_with_their_place() {
    let files = [
        ("a.list", "example.com\n!files.example.com\n"),
        ("b.list", "\n  =x.files.example.com\n"),
        ("c.list", "other.example\n"),
    ];
    let Loaded { catalogue, .. } = lists(&files).unwrap();
    let told: Vec<String> = catalogue
        .decide(&name("x.files.example.com"))
        .iter()
        .map(|d| format!("{} {:?} {} {}", d.app, d.verdict, d.trigger, d.location))
        .collect();
    assert_eq!(told, ["a Excepted !files.example.com a.list:2:1", "b Bypass =x.files.example.com b.list:2:3"]);
}

#[test]
fn disabled_app_matches_nothing_and_is_still_checked() {
    let files = [("zoom.list", "zoom.us\n198.51.100.0/24\n"), ("goto.list", "zoom.us\n")];
    let options = Options { disabled: vec!["zoom".into(), "gotoo".into(), "quite-else".into()], ..Options::default() };
    let Loaded { catalogue, warnings, .. } = lists_with(&files, &options).unwrap();
    assert_eq!(hits(&catalogue, "zoom.us"), ["goto zoom.us"]);
    assert_eq!((catalogue.prefixes().len(), catalogue.names().count(), catalogue.trigger_count()), (0, 1, 1));
    assert!(catalogue.app("zoom").unwrap().disabled);
    assert_eq!(
        lines(&warnings),
        [
            "catalogue.disabled: no list has the app id `gotoo`, expected `goto`",
            "catalogue.disabled: no list has the app id `quite-else`, expected the id of a list in the folder",
        ]
    );
    assert!(lists_with(&[("zoom.list", "com\n")], &options).is_err());
}

#[test]
fn prefix_of_two_apps_stands_once() {
    let files = [("b.list", "198.51.100.0/24\n"), ("a.list", "x.example, 198.51.100.0/24, 192.0.2.0/24\n")];
    let Loaded { catalogue, .. } = lists(&files).unwrap();
    let told: Vec<String> = catalogue
        .prefixes()
        .iter()
        .map(|listed| {
            format!("{} {:?} {}", listed.prefix, listed.apps().collect::<Vec<_>>(), listed.tag.primary().location)
        })
        .collect();
    assert_eq!(told, ["192.0.2.0/24 [AppId(a)] a.list:1:29", "198.51.100.0/24 [AppId(a), AppId(b)] a.list:1:12"]);
}

#[test]
fn hash_is_of_content_alone() {
    let hash = |files: &[(&str, &str)], options: &Options| lists_with(files, options).unwrap().catalogue.hash();
    let plain = Options::default();
    let base = hash(&[("a.list", "x.example\ny.example\n"), ("b.list", "192.0.2.0/24")], &plain);
    assert_eq!(base, 2_539_798_071_216_653_252, "stable across processes and releases");
    assert_eq!(base, hash(&[("b.list", "# B\n192.0.2.0/24"), ("a.list", "y.example,x.example,y.example")], &plain));
    assert_ne!(base, hash(&[("a.list", "x.example\n=y.example\n"), ("b.list", "192.0.2.0/24")], &plain));
    assert_ne!(base, hash(&[("a.list", "x.example\ny.example\n192.0.2.0/24"), ("b.list", "")], &plain));
    let disabled = Options { disabled: vec!["a".into()], ..Options::default() };
    assert_ne!(base, hash(&[("a.list", "x.example\ny.example\n"), ("b.list", "192.0.2.0/24")], &disabled));
}

#[test]
fn malformed_wire_matches_nothing() {
    let Loaded { catalogue, .. } = lists(&[("a.list", "example\n")]).unwrap();
    assert!(catalogue.find_wire(b"\x07example\0").is_some());
    for wire in
        [&b""[..], b"\0", b"\x07example", b"\x07exampl", b"\x07example\0\0", b"\xc0\x0c", b"\x40", &[1; 300], &[1; 255]]
    {
        assert_eq!(catalogue.find_wire(wire), None, "{wire:?}");
    }
}

#[test]
fn long_labels_are_told_apart() {
    let stem = "a-label-of-fifteen-and-more-octets";
    let Loaded { catalogue, .. } = lists(&[("a.list", &format!("{stem}1.example\nx.{stem}2.example\n"))]).unwrap();
    assert_eq!(hits(&catalogue, &format!("{stem}1.example")).len(), 1);
    assert_eq!(hits(&catalogue, &format!("{stem}2.example")).len(), 0);
    assert_eq!(hits(&catalogue, &format!("{stem}3.example")).len(), 0);
    assert_eq!(hits(&catalogue, &format!("x.{stem}2.example")).len(), 1);
}

/// What the rules say, by looking at every trigger: the oracle for the index.
fn scan(apps: &[Vec<Trigger>], never: &[Name], asked: &Name) -> Vec<(u16, Trigger)> {
    if never.iter().any(|never| asked.is_at_or_below(never)) {
        return Vec::new();
    }
    let mut yes: Vec<(u16, Trigger)> = Vec::new();
    for (app, triggers) in apps.iter().enumerate() {
        let covering = triggers.iter().filter(|trigger| trigger.covers(asked));
        let strength = |trigger: &&Trigger| (std::cmp::Reverse(trigger.name.label_count()), trigger.kind);
        if let Some(deciding) = covering.min_by_key(strength).filter(|trigger| trigger.kind != Kind::Never) {
            yes.push((app as u16, deciding.clone()));
        }
    }
    yes.sort_by_key(|(app, trigger)| (std::cmp::Reverse(trigger.name.label_count()), trigger.kind, *app));
    yes
}

fn arb_name() -> impl Strategy<Value = Name> {
    // Few labels, so that names often meet; some share the first 15 octets, some names are long or deep.
    let label =
        prop::sample::select(vec!["a", "b", "c", "long-label-number-1", "long-label-number-2", "long-label-numbe"]);
    let few = prop::collection::vec(label, 1..=5);
    let deep = (1..=40usize, any::<bool>()).prop_map(|(count, is_other)| {
        let mut labels = vec!["a"; count];
        labels[0] = if is_other { "b" } else { "a" };
        labels
    });
    prop_oneof![3 => few, 1 => deep].prop_map(|labels| Name::parse(&labels.join(".")).unwrap())
}

fn arb_trigger() -> impl Strategy<Value = Trigger> {
    let kind = prop::sample::select(vec![Kind::Never, Kind::Exact, Kind::Below, Kind::Suffix, Kind::Suffix]);
    (arb_name(), kind).prop_map(|(name, kind)| Trigger { name, kind })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn index_agrees_with_a_naive_scan(
        apps in prop::collection::vec(prop::collection::vec(arb_trigger(), 0..12), 1..4),
        never in prop::collection::vec(arb_name(), 0..2),
        asked in prop::collection::vec(arb_name(), 1..20),
    ) {
        let texts: Vec<(String, String)> = apps
            .iter()
            .enumerate()
            .map(|(i, triggers)| (format!("app{i}.list"), triggers.iter().map(|trigger| format!("{trigger}\n")).collect()))
            .collect();
        let files: Vec<(&str, &str)> = texts.iter().map(|(file, text)| (file.as_str(), text.as_str())).collect();
        let options = Options { never: never.iter().map(Name::to_string).collect(), ..Options::default() };
        let Loaded { catalogue, .. } = lists_with(&files, &options).unwrap();
        let listed = apps.iter().flatten().map(|trigger| trigger.name.clone());
        for asked in asked.into_iter().chain(listed) {
            let expected: Vec<String> =
                scan(&apps, &never, &asked).into_iter().map(|(app, trigger)| format!("app{app} {trigger}")).collect();
            prop_assert_eq!(hits(&catalogue, &asked.to_string()), expected.clone(), "{}", asked);
            let mut decided: Vec<String> = catalogue
                .decide(&asked)
                .into_iter()
                .filter(|decision| decision.verdict == Verdict::Bypass)
                .map(|decision| format!("{} {}", decision.app, decision.trigger))
                .collect();
            let mut expected = expected;
            expected.sort();
            decided.sort();
            prop_assert_eq!(decided, expected, "{}", asked);
        }
    }

    #[test]
    fn no_file_panics(list in prop::collection::vec(any::<u8>(), 0..200), rpz in "[ -~\n\té]{0,200}|([a-z.*@$()\";]{1,8} (CNAME|SOA|A|IN|5) [a-z-]{0,6}\n){0,9}") {
        let _ = compile([("a.list", list.as_slice()), ("b.rpz", rpz.as_bytes()), ("c.rpz", list.as_slice())], &Options::default(), today());
    }
}
