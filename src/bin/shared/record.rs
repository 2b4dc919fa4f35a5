//! What a program keeps beside a file to go on with it later: `FILE.httpfstream`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use httpfstream::AppenderId;
use httpfstream::Life;

use super::exit::Failure;

/// One line for each of these, its name and its value.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) url: String,
    /// Of an appender.
    pub(crate) id: Option<AppenderId>,
    pub(crate) life: Option<Life>,
    /// The resource's offset of the file's first byte.
    pub(crate) base: u64,
    /// Up to this offset an appender's bytes are certainly stored.
    pub(crate) acknowledged: u64,
    /// An appender is about to end the resource at this length, or did.
    pub(crate) finishing: Option<u64>,
}

/// Where the record of a file is.
#[derive(Debug)]
pub(crate) struct Place(PathBuf);

impl Place {
    pub(crate) fn beside(file: &Path) -> Self {
        let mut path = file.as_os_str().to_owned();
        path.push(".httpfstream");
        Self(path.into())
    }

    /// What is kept for a stream of this URL; nothing if there is no record.
    pub(crate) fn load(&self, url: &str) -> Result<Option<Record>, Failure> {
        let text = match fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("can't be read", &error)),
        };
        let record = parse(&text)
            .ok_or_else(|| Failure::Local(format!("{} is damaged; remove it to start anew", self.0.display())))?;
        if record.url != url {
            let detail =
                format!("{} belongs to {}; give that URL, or remove it to start anew", self.0.display(), record.url);
            return Err(Failure::Local(detail));
        }
        Ok(Some(record))
    }

    /// Replaces the record. It survives a power loss once this returns, and only its owner can read it.
    pub(crate) fn save(&self, record: &Record) -> Result<(), Failure> {
        self.replace(&format(record)).map_err(|error| self.failed("can't be written", &error))
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let mut new = self.0.clone().into_os_string();
        new.push(".new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &self.0)?;
        self.sync_folder()
    }

    pub(crate) fn remove(&self) -> Result<(), Failure> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => {
                removed.and_then(|()| self.sync_folder()).map_err(|error| self.failed("can't be removed", &error))
            }
        }
    }

    fn sync_folder(&self) -> io::Result<()> {
        let folder = self.0.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Elsewhere a folder can't be opened.
        if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
    }

    fn failed(&self, what: &str, error: &io::Error) -> Failure {
        Failure::Local(format!("{} {what}: {error}", self.0.display()))
    }
}

fn format(record: &Record) -> String {
    let mut text = format!("url {}\nbase {}\nacknowledged {}\n", record.url, record.base, record.acknowledged);
    if let Some(id) = &record.id {
        text += &format!("id {}\n", id.as_str());
    }
    if let Some(life) = record.life {
        text += &format!("life {life}\n");
    }
    if let Some(length) = record.finishing {
        text += &format!("finishing {length}\n");
    }
    text
}

fn parse(text: &str) -> Option<Record> {
    let mut record = Record::default();
    for line in text.lines() {
        let (name, value) = line.split_once(' ')?;
        match name {
            "url" => record.url = value.to_owned(),
            "id" => record.id = Some(value.parse().ok()?),
            "life" => record.life = Some(Life::from_bits(u128::from_str_radix(value, 16).ok()?)),
            "base" => record.base = value.parse().ok()?,
            "acknowledged" => record.acknowledged = value.parse().ok()?,
            "finishing" => record.finishing = Some(value.parse().ok()?),
            _ => return None,
        }
    }
    Some(record)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::beside(&folder.path().join("log.txt"));
        assert!(place.load("http://h/").unwrap().is_none());
        let id = AppenderId::random().unwrap();
        let life = Some(Life::from_bits(7));
        let mut record =
            Record { url: "http://h/".into(), id: Some(id.clone()), life, base: 3, acknowledged: 5, finishing: None };
        place.save(&record).unwrap();
        record.finishing = Some(9);
        place.save(&record).unwrap();
        let found = place.load("http://h/").unwrap().unwrap();
        assert_eq!((found.id, found.life, found.base, found.acknowledged), (Some(id), life, 3, 5));
        assert_eq!(found.finishing, Some(9));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = fs::metadata(folder.path().join("log.txt.httpfstream")).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert!(matches!(place.load("http://other/"), Err(Failure::Local(why)) if why.contains("http://h/")));
        place.remove().unwrap();
        assert!(place.load("http://h/").unwrap().is_none());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_record_is_said_to_be() {
        let folder = tempfile::tempdir().unwrap();
        for text in ["life x\n", "what\n", "id short\n", "base -1\n", "\n"] {
            fs::write(folder.path().join("f.httpfstream"), text).unwrap();
            let place = Place::beside(&folder.path().join("f"));
            assert!(matches!(place.load("u"), Err(Failure::Local(why)) if why.contains("damaged")), "{text}");
        }
    }
}
