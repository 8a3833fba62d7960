import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { CallOptions } from '../../../base/call.ts';
import { HyperMeshError } from '../../../base/errors.ts';
import { visible } from '../output.ts';

/** One mirror of a distribution that this machine trusts. */
export interface AptSource {
  readonly uri: string;
  readonly suites: readonly string[];
  /** Absolute path of the keys that sign it; null: the machine's common ones. */
  readonly signedBy: string | null;
}

/** Packages as files, verified by apt against the signed index of their suite. */
export interface FetchedPackages {
  readonly suite: string;
  readonly files: readonly string[];
}

const COMMAND_MS_MAX = 15 * 60_000;
const OUTPUT_BYTES_MAX = 4 * 2 ** 20;
const SOURCE_BYTES_MAX = 2 ** 20;
const DOWNLOAD_BYTES_MAX = 2 ** 30;
const PACKAGES_MAX = 1_000;
const POLL_MS = 500;
/** What the programs that apt starts need of our environment, and nothing that is ours. */
const PASSED_ON = ['http_proxy', 'https_proxy', 'no_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'NO_PROXY'];

/** The mirrors in `sources.list` and `sources.list.d` of `folder` that carry a `main` component. */
export async function readAptSources(folder: string): Promise<AptSource[]> {
  const inner = join(folder, 'sources.list.d');
  const names = (await readdir(inner).catch(() => [])).sort().map((name) => join(inner, name));
  const found: AptSource[] = [];
  for (const file of [...names, join(folder, 'sources.list')]) {
    const info = await stat(file).catch(() => null);
    if (info?.isFile() !== true || info.size > SOURCE_BYTES_MAX) continue;
    const text = await readFile(file, 'utf8').catch(() => '');
    if (file.endsWith('.sources')) found.push(...parseStanzas(text));
    else if (file.endsWith('.list')) found.push(...parseLines(text));
  }
  return found;
}

/** The format of `*.sources`: fields in stanzas. */
export function parseStanzas(text: string): AptSource[] {
  return text
    .split('\n')
    .filter((line) => !line.startsWith('#'))
    .join('\n')
    .split(/\n\s*\n/)
    .flatMap((stanza) => {
      const fields = new Map(
        stanza
          .replace(/\n[ \t]+/g, ' ')
          .split('\n')
          .flatMap((line) => {
            const at = line.indexOf(':');
            return at < 1 ? [] : [[line.slice(0, at).toLowerCase(), line.slice(at + 1).trim()] as const];
          }),
      );
      const list = (name: string) => (fields.get(name) ?? '').split(/\s+/).filter(Boolean);
      if (!list('types').includes('deb') || !list('components').includes('main')) return [];
      if (/^(no|false|0|off)$/i.test(fields.get('enabled') ?? '')) return [];
      const signedBy = fields.get('signed-by') ?? null;
      // Keys may also stand in the field itself: those are not for us.
      if (signedBy !== null && !signedBy.startsWith('/')) return [];
      return list('uris').flatMap((uri) => acceptable({ uri, suites: list('suites'), signedBy }));
    });
}

/** The format of `*.list`: `deb [options] uri suite components`. */
export function parseLines(text: string): AptSource[] {
  return text.split('\n').flatMap((line) => {
    const match = /^\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]*)/.exec(line);
    if (match === null || !match[4]!.split(/\s+/).includes('main')) return [];
    const signedBy = /(?:^|\s)signed-by=(\S+)/i.exec(match[1] ?? '')?.[1] ?? null;
    return acceptable({ uri: match[2]!, suites: [match[3]!], signedBy });
  });
}

function acceptable(source: AptSource): AptSource[] {
  const { uri, signedBy } = source;
  if (!/^(https?|file|mirror\+https?):[^\s"\\]+$/.test(uri)) return [];
  if (signedBy !== null && !/^\/[^\s"\\,]+$/.test(signedBy)) return [];
  const suites = source.suites.filter((suite) => /^[a-z][a-z0-9.-]{0,63}$/.test(suite));
  return suites.length === 0 ? [] : [{ uri, suites, signedBy }];
}

/**
 * Downloads `names` and everything that they depend on from the first of `sources` that has them all: its own releases first, then `suites`,
 * older releases that the same mirror may carry. Uses a private state in `work`; nothing is installed, nothing outside `work` changes, and
 * the machine's own keys decide what is genuine. Steps: `index`, `download`.
 * Errors: `runtime-unavailable` (with a reason for each source), `limit-exceeded`, `cancelled`.
 */
export async function fetchPackages(
  names: readonly string[],
  sources: readonly AptSource[],
  { work, suites, ...options }: CallOptions & { readonly work: string; readonly suites: readonly string[] },
): Promise<FetchedPackages> {
  if (/["\\\n]/.test(work)) {
    throw new HyperMeshError(
      'usage',
      `apt cannot work below ${work}: its name has a quote, a backslash or a line end.`,
      {
        hint: 'Use a home with a plainer name.',
      },
    );
  }
  const candidates = sources.flatMap((source) =>
    [...new Set([...source.suites.filter((suite) => !suite.includes('-')), ...suites])].map((suite) => ({
      source,
      suite,
    })),
  );
  const reasons: string[] = [];
  for (const [index, { source, suite }] of candidates.entries()) {
    const apt = await preparePrivateApt(join(work, `apt-${index}`), source, suite);
    try {
      options.onProgress?.({ step: 'index', done: index, total: candidates.length, note: suite });
      await execute('apt-get', ['-q', 'update'], { ...options, apt });
      const planned = await plan(names, { ...options, apt });
      options.onProgress?.({ step: 'index', done: candidates.length, total: candidates.length });
      await download(names, planned.bytes, { ...options, apt });
      const files = (await readdir(apt.archives)).filter((file) => file.endsWith('.deb')).sort();
      if (files.length === planned.count) return { suite, files: files.map((file) => join(apt.archives, file)) };
      reasons.push(`${suite}: ${files.length} of ${planned.count} packages came`);
    } catch (error) {
      if (error instanceof HyperMeshError) throw error;
      reasons.push(`${suite}: ${(error as Error).message}`);
    }
  }
  const why = candidates.length === 0 ? 'this machine has no apt sources' : reasons.join('; ');
  throw new HyperMeshError(
    'runtime-unavailable',
    `No package source of this machine gives ${names.join(' and ')}: ${why}.`,
    {
      hint: 'A Debian mirror in the apt sources of this machine is needed, and a way to reach it.',
    },
  );
}

interface PrivateApt {
  readonly configuration: string;
  readonly archives: string;
}

async function preparePrivateApt(folder: string, { uri, signedBy }: AptSource, suite: string): Promise<PrivateApt> {
  const archives = join(folder, 'archives');
  for (const path of [join(folder, 'lists', 'partial'), join(archives, 'partial'), join(folder, 'etc')])
    await mkdir(path, { recursive: true, mode: 0o700 });
  // An empty status: nothing counts as installed, so the closure is whole.
  await writeFile(join(folder, 'status'), '');
  // Of a mirror on this disk, `file:` would leave the packages where they are.
  const source = ['Types: deb', `URIs: ${uri.replace(/^file:/, 'copy:')}`, `Suites: ${suite}`, 'Components: main'];
  if (signedBy !== null) source.push(`Signed-By: ${signedBy}`);
  await writeFile(join(folder, 'the.sources'), `${source.join('\n')}\n`);
  const settings = {
    Dir: '/',
    'Dir::Etc::main': '/dev/null',
    'Dir::Etc::parts': join(folder, 'etc'),
    'Dir::Etc::preferences': '/dev/null',
    'Dir::Etc::preferencesparts': join(folder, 'etc'),
    'Dir::Etc::sourcelist': join(folder, 'the.sources'),
    'Dir::Etc::sourceparts': '/dev/null',
    'Dir::State': folder,
    'Dir::State::lists': join(folder, 'lists'),
    'Dir::State::status': join(folder, 'status'),
    'Dir::Cache': folder,
    'Dir::Cache::archives': archives,
    'Dir::Log': folder,
    'APT::Sandbox::User': 'root',
    'APT::Install-Recommends': 'false',
    'APT::Get::Assume-Yes': 'true',
    'Acquire::Languages': 'none',
    'Acquire::Retries': '2',
    // Releases that are no longer updated have an index that says so.
    'Acquire::Check-Valid-Until': 'false',
    'Debug::NoLocking': 'true',
  };
  const configuration = join(folder, 'apt.conf');
  await writeFile(
    configuration,
    Object.entries(settings)
      .map(([key, value]) => `${key} "${value}";\n`)
      .join(''),
  );
  return { configuration, archives };
}

async function plan(
  names: readonly string[],
  options: CallOptions & { readonly apt: PrivateApt },
): Promise<{ readonly count: number; readonly bytes: number }> {
  const printed = await execute('apt-get', ['-q', 'install', '--print-uris', ...names], options);
  const sizes = printed.split('\n').flatMap((line) => {
    const match = /^'[^']+' \S+\.deb (\d+) /.exec(line);
    return match === null ? [] : [Number(match[1])];
  });
  const bytes = sizes.reduce((sum, size) => sum + size, 0);
  if (sizes.length > PACKAGES_MAX || bytes > DOWNLOAD_BYTES_MAX) {
    throw new HyperMeshError(
      'limit-exceeded',
      `${names.join(' and ')} want ${sizes.length} packages of ${bytes} bytes; at most ${PACKAGES_MAX} of ${DOWNLOAD_BYTES_MAX} are fetched.`,
    );
  }
  return { count: sizes.length, bytes };
}

async function download(
  names: readonly string[],
  total: number,
  options: CallOptions & { readonly apt: PrivateApt },
): Promise<void> {
  const report = async () => {
    const done = await bytesIn(options.apt.archives);
    options.onProgress?.({ step: 'download', unit: 'bytes', done: Math.min(done, total), total });
  };
  const timer = setInterval(() => void report().catch(() => {}), POLL_MS);
  try {
    await execute('apt-get', ['-q', 'install', '--download-only', ...names], options);
  } finally {
    clearInterval(timer);
  }
  options.onProgress?.({ step: 'download', unit: 'bytes', done: total, total });
}

async function bytesIn(folder: string): Promise<number> {
  const entries = await readdir(folder, { recursive: true, withFileTypes: true });
  const sizes = await Promise.all(
    entries.map((entry) =>
      stat(join(entry.parentPath, entry.name)).then(
        (info) => (info.isFile() ? info.size : 0),
        () => 0,
      ),
    ),
  );
  return sizes.reduce((sum, size) => sum + size, 0);
}

/** Unpacks one package into `root`; no script of it runs. Fails with an Error that says why. */
export async function unpackPackage(file: string, root: string, options: CallOptions): Promise<void> {
  await execute('dpkg-deb', ['--extract', file, root], options);
}

function execute(
  command: string,
  args: readonly string[],
  { signal, apt }: CallOptions & { readonly apt?: PrivateApt },
): Promise<string> {
  const env: Record<string, string> = {
    PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    LC_ALL: 'C',
  };
  for (const name of PASSED_ON) if (process.env[name] !== undefined) env[name] = process.env[name];
  if (apt !== undefined) env['APT_CONFIG'] = apt.configuration;
  return new Promise((resolve, reject) => {
    execFile(
      command,
      args,
      {
        env,
        cwd: '/',
        timeout: COMMAND_MS_MAX,
        maxBuffer: OUTPUT_BYTES_MAX,
        killSignal: 'SIGKILL',
        ...(signal === undefined ? {} : { signal }),
      },
      (error, stdout, stderr) => {
        if (error === null) resolve(stdout);
        else if (signal?.aborted === true)
          reject(new HyperMeshError('cancelled', 'The caller gave up.', { cause: signal.reason }));
        else if ((error as NodeJS.ErrnoException).code === 'ENOENT')
          reject(
            new HyperMeshError('runtime-unavailable', `This machine has no ${command}.`, {
              hint: 'Languages are added from packages of Debian, by apt and dpkg.',
            }),
          );
        else reject(new Error(`${command} said "${lastWords(stderr) || error.message}"`, { cause: error }));
      },
    );
  });
}

/** The errors in what a command printed, short, harmless on a terminal, and without the passwords of mirrors. */
function lastWords(stderr: string): string {
  const lines = stderr.split('\n').filter((line) => /^E:/.test(line));
  return visible(lines.slice(0, 3).join(' '))
    .replace(/\/\/[^/@\s]*@/g, '//')
    .slice(0, 500);
}
