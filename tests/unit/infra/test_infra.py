"""Image and compose file are valid, only loopback ports are open, and no file of infra/ has a secret."""

import fnmatch
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
INFRA = ROOT / "infra"
FILES = sorted(path for path in INFRA.rglob("*") if path.is_file() and path.name != ".env")


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def locked(name: str) -> str:
    return re.search(rf"^{name}==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]


# --- secrets ---------------------------------------------------------------------------------------------------------

KEYS = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN|gh[pousr]_\w{20}|\bxox\w-|\beyJ[\w-]{20}|://[^/\s:@$]+:[^@\s$]+@")
NAMED = re.compile(r"(?i)[\w-]*(?:password|secret|token|api_?key|access_?key)[\w-]*[ \t]*[:=][ \t]*[\"']?([^\s\"']+)")


def secrets_in(text: str) -> list[str]:
    """Text that looks like a secret: known keys, a password in a URL, or a value of 8 or more letters and digits of a
    name such as `password` or `token`."""
    found = [match[0] for match in KEYS.finditer(text)]
    for match in NAMED.finditer(text):
        if re.fullmatch(r"[A-Za-z0-9+/=_-]{8,}", match[1]) and re.search(r"\d", match[1]):
            found.append(match[0])
    return found + re.findall(r"\b[0-9a-f]{32,}\b", text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_have_no_secret(path):
    assert not secrets_in(path.read_text())


@pytest.mark.parametrize(
    "line",
    ["RAY_AUTH_TOKEN: 3c1f0a9b77", "aws_secret_access_key = wJalrXUtnFEMI/K7", "postgresql://mlflow:hunter2@db/mlflow"],
)
def test_secrets_are_detected(line):
    assert secrets_in(line)


def test_the_env_file_has_the_variables_that_compose_needs():
    form = dict(re.findall(r"^(\w+)=(.*)$", (INFRA / ".env.example").read_text(), re.MULTILINE))
    assert not any(form.values())
    compose = "".join(path.read_text() for path in INFRA.glob("compose*.yaml"))
    assert set(re.findall(r"\$\{(\w+)", compose)) == set(form)
    assert subprocess.run(["git", "check-ignore", "-q", "infra/.env"], cwd=ROOT).returncode == 0


# --- image -----------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in (INFRA / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def ignored(path: str) -> bool:
    """Whether .dockerignore excludes a path of the context; its last matching pattern decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern, negated = line.removeprefix("!"), line.startswith("!")
        tops = ("/".join(path.split("/")[:i]) for i in range(1, path.count("/") + 2))
        if line and not line.startswith("#") and any(fnmatch.fnmatch(top, pattern) for top in tops):
            verdict = not negated
    return verdict


def test_the_image_copies_existing_files_and_runs_as_an_unprivileged_user():
    steps = instructions()
    sources = [source for name, rest in steps if name == "COPY" for source in rest.split()[:-1]]
    assert sources and all((ROOT / source).exists() and not ignored(source) for source in sources)
    assert set(sources) >= {"requirements.txt", "egic", "jobs", "pipelines"}
    user = [rest for name, rest in steps if name == "USER"][-1]
    assert user == "1000:1000" and "--uid 1000" in dict(steps[2:3])["RUN"]
    assert not any(name in ("ADD", "ARG") and "BASE=python:3.11" not in rest for name, rest in steps)
    installs = [c for name, rest in steps if name == "RUN" for c in rest.split("&&") if "pip install" in c]
    assert (
        all("--require-hashes" in c or "--no-deps --no-build-isolation" in c for c in installs) and len(installs) == 3
    )
    environment = dict(re.findall(r"(\w+)=(\S+)", " ".join(rest for name, rest in steps if name == "ENV")))
    assert environment["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("path", ["infra/.env", ".git/config", "outputs/summary.json", "mlflow.db", ".venv/bin/python",
                                  "tests/conftest.py", "egic/__pycache__/codec.pyc"])  # fmt: skip
def test_dockerignore_excludes(path):
    assert ignored(path)


def test_the_lock_has_the_servers_packages():
    for name in ("psycopg2-binary", "boto3", "flask-wtf", "google-cloud-storage", "google-api-python-client", "uv"):
        assert locked(name)
    assert "--index-url" not in (ROOT / "requirements.txt").read_text()
    assert "://" not in (ROOT / "requirements.txt").read_text()


# --- compose ---------------------------------------------------------------------------------------------------------


def test_compose_opens_only_loopback_ports():
    compose = load(INFRA / "compose.yaml")
    services = compose["services"]
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert sorted(ports) == ["127.0.0.1:5000:5000", "127.0.0.1:8265:8265"]
    assert services["ray"]["networks"] == ["work"] and compose["networks"]["storage"]["internal"]
    for name, service in services.items():
        assert service["healthcheck"]["test"][0] == "CMD" and service["restart"], name
        assert set(service["networks"]) <= set(compose["networks"])
        for volume in service.get("volumes", []):
            source = volume.rpartition("/")[0] if volume.startswith("$") else volume.split(":")[0]
            assert volume.startswith("${EGIC_DATA") or source in compose["volumes"]
        for other in service.get("depends_on", {}):
            assert "healthcheck" in services[other]
        image = service["image"]
        assert image == "egic" or re.fullmatch(r"[\w/]+:[\w.-]*\d[\w.-]*", image), "pinned by version"
        if "build" in service:
            assert (INFRA / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    for key, value in services["ray"]["environment"].items():
        assert key not in ("PGPASSWORD",) and "S3_" not in str(value)
    assert services["ray"]["environment"]["RAY_AUTH_MODE"] == "token"
    store = services["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    assert store.startswith("postgresql+psycopg2://"), "SQLAlchemy's default driver is another one, which is not locked"
    assert "--app-name basic-auth" in services["mlflow"]["command"][-1]
    assert set(load(INFRA / "compose.gpu.yaml")["services"]) <= set(services)


def test_compose_files_are_valid_by_docker(tmp_path):
    if not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    names = re.findall(r"^(\w+)=", (INFRA / ".env.example").read_text(), re.MULTILINE)
    (tmp_path / "env").write_text("".join(f"{name}=value\n" for name in names))
    files = [word for path in sorted(INFRA.glob("compose*.yaml")) for word in ("-f", str(path))]
    command = ["docker", "compose", "--env-file", str(tmp_path / "env"), *files, "config", "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
