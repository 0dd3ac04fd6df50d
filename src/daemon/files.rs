//! The files that a configuration names, for those who confine the process to them.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::forward::ROOTS_VARIABLE;
use crate::sandbox::Files;

/// What the system tells in files: addresses of its servers, how many cores there are, which boot this is, authorities of
/// certificates.
const SYSTEM: [&str; 4] = ["/etc", "/proc", "/sys/fs/cgroup", "/usr/share"];

/// Returns what greenlane reads and writes under a configuration that stood in `source`; `None` if nobody can tell,
/// because it runs commands of the operator.
///
/// Folders rather than files: editors replace a file, and a folder of lists may be made anew.
pub fn files(config: &Config, source: Option<&Path>) -> Option<Files> {
    if config.export_files.iter().any(|file| !file.on_change.is_empty()) {
        return None;
    }
    let named = [source, Some(&config.catalogue.path)];
    let tokens = [&config.web.read_token_file, &config.web.admin_token_file, &config.warm.names_file];
    let tokens = tokens.into_iter().chain([&config.listen.clients.cookie_secret_file, &config.hosts]);
    let named = named.into_iter().flatten().chain(tokens.flatten().map(PathBuf::as_path));
    let mut read: Vec<PathBuf> = named.map(folder_of).collect();
    let pair = config.listen.tls.iter().flat_map(|pair| [&pair.certificate, &pair.key]);
    read.extend(pair.map(|file| folder_of(file)));
    read.extend(config.cluster.iter().flat_map(|cluster| cluster.files()).map(folder_of));
    // The folder itself, where it stands in the root or is a link to another place.
    read.push(config.catalogue.path.clone());
    read.extend(SYSTEM.map(PathBuf::from));
    read.extend(std::env::var_os(ROOTS_VARIABLE).map(|file| folder_of(Path::new(&file))));
    // Often a link to where a program keeps it.
    let servers = std::fs::canonicalize("/etc/resolv.conf").ok();
    read.extend(servers.as_deref().map(folder_of));
    let written = config.export_files.iter().map(|file| file.path.as_path());
    let written = written.chain(config.store.as_ref().map(|store| store.path.as_path()));
    Some(Files { read, write: written.map(folder_of).collect() })
}

/// Returns the folder of a file; the file itself where that is the root, which would be everything.
fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if folder.as_os_str().is_empty() => PathBuf::from("."),
        Some(folder) if folder != Path::new("/") => folder.to_owned(),
        _ => file.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Env;

    fn of(text: &str) -> Option<Files> {
        let file = Path::new("/etc/greenlane/config.toml");
        files(&Config::from_text(text, file, &Env::default()).unwrap(), Some(file))
    }

    #[test]
    fn folders_of_what_is_named_are_read_and_those_of_store_and_exports_written() {
        let text = "[catalogue]\npath = \"/srv/lists\"\n[store]\npath = \"/var/lib/greenlane/set.redb\"\n\
                    cluster = \"rediss://valkey.corp.example\"\ncluster-password-file = \"/run/engine/password\"\n\
                    cluster-ca-file = \"/usr/local/ca/valkey.pem\"\n\
                    [clients]\ncookie-secret-file = \"/run/cookies/secret\"\n\
                    [tls]\ncertificate = \"/srv/tls/chain.pem\"\nkey = \"/srv/key/key.pem\"\n\
                    [web]\nread-token-file = \"/run/keys/token\"\n[[export.file]]\npath = \"/srv/www/prefixes.txt\"\n";
        let Files { read, write } = of(text).unwrap();
        let folders =
            ["/etc/greenlane", "/srv", "/srv/lists", "/run/keys", "/run/engine", "/usr/local/ca", "/run/cookies"];
        for folder in folders.into_iter().chain(["/srv/tls", "/srv/key"]) {
            assert!(read.contains(&folder.into()), "{folder}: {read:?}");
        }
        assert!(!read.contains(&"/".into()));
        assert_eq!(write, [PathBuf::from("/srv/www"), "/var/lib/greenlane".into()]);
    }

    #[test]
    fn commands_may_need_anything() {
        assert_eq!(of("[[export.file]]\npath = \"/srv/x\"\non-change = [\"true\"]\n"), None);
    }

    #[test]
    fn the_root_is_no_folder_to_be_given() {
        assert_eq!(folder_of(Path::new("/lists")), Path::new("/lists"));
        assert_eq!(folder_of(Path::new("lists")), Path::new("."));
    }
}
