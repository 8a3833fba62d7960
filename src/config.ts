import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import path from 'node:path';
import { z } from 'zod';
import { HyperMeshError, storageError } from './base/errors.ts';
import { CAPABILITY_NAMES } from './capabilities/extension.ts';
import { byteCount } from './wire/manifest.ts';
import type { OperationKind, Requirements } from './wire/proof.ts';

/** Where the HTTP API listens. */
export interface HttpAddress {
  /** An IP address or `localhost`. */
  readonly host: string;
  /** 0: the operating system chooses; `HOME/node.json` tells which. */
  readonly port: number;
}

const LOG_LEVELS = ['silent', 'error', 'warn', 'info', 'debug'] as const;

/** Proofs that one kind of operation needs; a proof that is `null` is not asked for. Absent: the default of the network. */
const requirement = z.strictObject({
  space: z
    .strictObject({
      /** Bytes that must be committed. */
      bytesMin: byteCount,
      /** How long an opening may take to arrive. */
      deadlineMs: z.int().min(100).max(600_000),
      openings: z.int().min(1).max(256),
    })
    .nullable(),
  stake: z.strictObject({ amountMin: z.int().nonnegative() }).nullable(),
  work: z.strictObject({ hexDigits: z.int().min(0).max(16) }).nullable(),
  time: z
    .strictObject({
      squarings: z
        .int()
        .min(1)
        .max(2 ** 32),
      windowMs: z.int().min(1_000).max(86_400_000),
    })
    .nullable(),
});

/**
 * Read once, when a new home makes its network; later changes have no effect, because the genesis document holds them.
 * Small numbers make a network for tests: its proofs are real and cheap.
 */
const network = z.strictObject({
  requirements: z
    .strictObject({
      publish: requirement.optional(),
      install: requirement.optional(),
      execute: requirement.optional(),
      default: requirement.optional(),
    })
    .optional(),
  space: z
    .strictObject({
      /** Size of the space commitment of this home. */
      bytes: byteCount,
      /** SHA-256 passes for each label of the commitment. */
      iterations: z.int().min(1).max(1_000).optional(),
    })
    .optional(),
  /** Tokens that the founder's account starts with. */
  stakeInitial: z.int().min(0).max(Number.MAX_SAFE_INTEGER).optional(),
});

/** A third party's extension: started with the node, given exactly what is granted here. */
const extension = z.strictObject({
  /** Absolute path of the folder with its `extension.json`. */
  folder: z.string().min(1).max(4_096).refine(path.isAbsolute, 'expected an absolute path'),
  grants: z.array(z.enum(CAPABILITY_NAMES)).default([]),
  /** `cell`: a process of its own, without rights on this machine. */
  mode: z.enum(['cell', 'in-process']).default('cell'),
  settings: z.json().optional(),
});

export type ExtensionSetting = z.infer<typeof extension>;

const paceMs = z.int().min(100).max(86_400_000);

/** How this home deals with the other nodes of its network. */
const peers = z.strictObject({
  /** `host:port` that others are told to connect to, where this machine cannot know by itself. */
  advertise: z.array(z.string().min(3).max(255)).min(1).max(8).optional(),
  /** `false`: does not look for nodes of its network on the local link, and does not answer those who look. */
  lan: z.boolean().optional(),
  /** Limits for content that leaves and arrives; none by default. */
  uploadBytesPerSecond: byteCount.optional(),
  downloadBytesPerSecond: byteCount.optional(),
  /** How often this node looks after the network; the defaults suit networks of any size. */
  pace: z
    .strictObject({
      /** One node is asked whether it is there. */
      probeMs: paceMs.optional(),
      /** A node may be silent for so long before its copies are made elsewhere. */
      patienceMs: paceMs.optional(),
      /** Records are compared with one node. */
      syncMs: paceMs.optional(),
      /** The places of all copies are computed anew. */
      replicationMs: paceMs.optional(),
      /** A fragment of coded content may be missed for so long before it is made again. */
      fragmentPatienceMs: paceMs.optional(),
    })
    .optional(),
});

const pemFile = z.string().min(1).max(4_096).refine(path.isAbsolute, 'expected an absolute path');

/** How this machine gets into a cluster of etcd; where that is the order of the network says. */
const etcd = z.strictObject({
  /** PEM files. */
  ca: pemFile.optional(),
  cert: pemFile.optional(),
  key: pemFile.optional(),
  user: z.string().min(1).max(256).optional(),
  /** Read by nobody but its owner; HYPERMESH_ETCD_PASSWORD wins. */
  passwordFile: pemFile.optional(),
});

/** `HOME/config.yaml`. Every key is optional; an unknown one is refused. */
const configFile = z.strictObject({
  http: z.string().max(300).optional(),
  logLevel: z.enum(LOG_LEVELS).optional(),
  subject: z.string().min(1).max(64).optional(),
  threads: z.int().min(1).max(256).optional(),
  keptBoxes: z.int().min(0).max(64).optional(),
  network: network.optional(),
  peers: peers.optional(),
  etcd: etcd.optional(),
  extensions: z.array(extension).max(100).optional(),
});

/** `network:` of the file, each requirement with its kind. */
export interface NetworkConfig {
  readonly requirements?: Partial<Record<OperationKind, Requirements>>;
  readonly space?: { readonly bytes: number; readonly iterations?: number };
  readonly stakeInitial?: number;
}

/** `peers:` of the file. */
export interface PeersSetting {
  readonly advertise?: readonly string[];
  readonly lan?: boolean;
  readonly limits: { readonly uploadBytesPerSecond?: number; readonly downloadBytesPerSecond?: number };
  readonly pace?: {
    readonly probeMs?: number;
    readonly patienceMs?: number;
    readonly syncMs?: number;
    readonly replicationMs?: number;
    readonly fragmentPatienceMs?: number;
  };
}

/** Everything that decides how a node runs, except {@link Secrets}. Flags win over the environment, that over `HOME/config.yaml`, that over the defaults. */
export interface Config {
  /** Folder of the node. `--home`, HYPERMESH_HOME; default `~/.hypermesh`. Absolute. */
  readonly home: string;
  /** `--http`, HYPERMESH_HTTP, `http:`; default `127.0.0.1:0`. */
  readonly http: HttpAddress;
  /** `--log-level`, HYPERMESH_LOG_LEVEL, `logLevel:`; default `info`. */
  readonly logLevel: (typeof LOG_LEVELS)[number];
  /** Name of the publisher in the certificates of a new home. `subject:`; default: chosen by the key store. */
  readonly subject?: string;
  /** Worker threads for the proof of work. `threads:`; default: one for each processor but one, at most 4. */
  readonly threads?: number;
  /** Processes of WebAssembly programs that wait for another run. `keptBoxes:`; default: twice as many as processors, at most 16. */
  readonly keptBoxes?: number;
  /** `network:` of a new home. */
  readonly network: NetworkConfig;
  /** `peers:` */
  readonly peers: PeersSetting;
  /** `extensions:`; default: none but the catalog. */
  readonly extensions: readonly ExtensionSetting[];
}

/** Kept apart from {@link Config} so that it can never be printed with it. */
export interface Secrets {
  /** Opens the key store. `--passphrase-file`, HYPERMESH_PASSPHRASE; else asked for on a terminal when it is needed. */
  readonly passphrase?: string;
  /** `etcd:` with what its files hold. */
  readonly etcd?: EtcdSecrets;
}

interface EtcdSecrets {
  readonly tls?: { readonly ca?: string; readonly cert?: string; readonly key?: string };
  readonly user?: { readonly name: string; readonly password: string };
}

/** What the command line contributes; each is the text as typed. */
export interface Flags {
  readonly home?: string | undefined;
  readonly http?: string | undefined;
  readonly logLevel?: string | undefined;
  readonly passphraseFile?: string | undefined;
}

export interface Loaded {
  readonly config: Config;
  readonly secrets: Secrets;
}

const FILE_BYTES_MAX = 256 * 1024;

/** Reads flags, environment and `HOME/config.yaml`. Errors: `config-invalid`, `storage-*`. */
export async function loadConfig(flags: Flags = {}, env: NodeJS.ProcessEnv = process.env): Promise<Loaded> {
  const home = path.resolve(
    nonEmpty(flags.home, '--home') ?? nonEmpty(env['HYPERMESH_HOME'], 'HYPERMESH_HOME') ?? usualHome(),
  );
  const file = await readConfigFile(path.join(home, 'config.yaml'));
  const logLevel = flags.logLevel ?? env['HYPERMESH_LOG_LEVEL'] ?? file.logLevel ?? 'info';
  const config: Config = {
    home,
    http: parseHttpAddress(flags.http ?? env['HYPERMESH_HTTP'] ?? file.http ?? '127.0.0.1:0'),
    logLevel: LOG_LEVELS.find((level) => level === logLevel) ?? refuseLevel(logLevel),
    ...(file.subject === undefined ? {} : { subject: file.subject }),
    ...(file.threads === undefined ? {} : { threads: file.threads }),
    ...(file.keptBoxes === undefined ? {} : { keptBoxes: file.keptBoxes }),
    network: file.network === undefined ? {} : networkOf(file.network),
    peers: peersOf(file.peers ?? {}),
    extensions: file.extensions ?? [],
  };
  const passphrase =
    flags.passphraseFile === undefined ? env['HYPERMESH_PASSPHRASE'] : readPassphrase(flags.passphraseFile);
  const secrets: Secrets = {
    ...(passphrase === undefined || passphrase === '' ? {} : { passphrase }),
    ...(file.etcd === undefined ? {} : { etcd: etcdOf(file.etcd, env['HYPERMESH_ETCD_PASSWORD']) }),
  };
  return { config, secrets };
}

/** Errors: `config-invalid` for a user whom this machine does not know, as in some containers. */
function usualHome(): string {
  try {
    return path.join(homedir(), '.hypermesh');
  } catch (cause) {
    throw new HyperMeshError('config-invalid', 'This user has no folder of its own for a home.', {
      hint: 'Name a folder with --home or HYPERMESH_HOME.',
      cause,
    });
  }
}

/** Errors: `config-invalid`, `storage-*`. */
function etcdOf({ user, passwordFile, ...files }: z.infer<typeof etcd>, fromEnv: string | undefined): EtcdSecrets {
  const read = (file: string) => {
    const text = readText(file, 'reading a file of `etcd:`');
    if (text !== undefined) return text;
    throw new HyperMeshError('config-invalid', `The file ${file} of \`etcd:\` does not exist.`);
  };
  const tls = Object.fromEntries(
    Object.entries(plain(files)).map(([name, file]) => [name, read(file)]),
  ) as EtcdSecrets['tls'] & object;
  if (user === undefined) return Object.keys(tls).length === 0 ? {} : { tls };
  const password = fromEnv ?? (passwordFile === undefined ? undefined : read(passwordFile).replace(/\r?\n$/, ''));
  if (password === undefined) {
    throw new HyperMeshError('config-invalid', '`etcd:` names a user and no password.', {
      hint: 'Set `passwordFile:`, or HYPERMESH_ETCD_PASSWORD.',
    });
  }
  return { ...(Object.keys(tls).length === 0 ? {} : { tls }), user: { name: user, password } };
}

/** `127.0.0.1:4000`, `[::1]:4000`, `localhost`, `4000`, `:4000`. Errors: `config-invalid`. */
export function parseHttpAddress(text: string): HttpAddress {
  const match =
    /^(?:(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]*[A-Za-z.-][A-Za-z0-9.-]*|\d+(?:\.\d+){3}))?(?::?(\d{1,5}))?$/.exec(text);
  const port = Number(match?.[2] ?? 0);
  if (!match || text === '' || port > 65_535) {
    throw new HyperMeshError(
      'config-invalid',
      `Expected an address such as 127.0.0.1:4000, but got "${text.slice(0, 100)}".`,
      {
        hint: 'Use --http ADDRESS:PORT; port 0 lets the system choose.',
      },
    );
  }
  return { host: (match[1] ?? '127.0.0.1').replace(/^\[|\]$/g, ''), port };
}

function networkOf({ requirements, space, stakeInitial }: z.infer<typeof network>): NetworkConfig {
  const rows = Object.entries(requirements ?? {}).map(([kind, row]) => [kind, { kind, ...row }]);
  return {
    ...(requirements === undefined ? {} : { requirements: Object.fromEntries(rows) }),
    ...(space === undefined
      ? {}
      : { space: { bytes: space.bytes, ...(space.iterations === undefined ? {} : { iterations: space.iterations }) } }),
    ...(stakeInitial === undefined ? {} : { stakeInitial }),
  };
}

function peersOf({ advertise, lan, pace, ...limits }: z.infer<typeof peers>): PeersSetting {
  return {
    limits: plain(limits),
    ...(advertise === undefined ? {} : { advertise }),
    ...(lan === undefined ? {} : { lan }),
    ...(pace === undefined ? {} : { pace: plain(pace) }),
  };
}

/** Without the members that are undefined. */
function plain<T extends object>(value: T): { readonly [Key in keyof T]: Exclude<T[Key], undefined> } {
  return Object.fromEntries(Object.entries(value).filter(([, member]) => member !== undefined)) as {
    readonly [Key in keyof T]: Exclude<T[Key], undefined>;
  };
}

async function readConfigFile(file: string): Promise<z.infer<typeof configFile>> {
  const text = readText(file, 'reading the configuration');
  if (text === undefined) return {};
  const { parse } = await import('yaml');
  let value: unknown;
  try {
    value = parse(text, { maxAliasCount: 0, schema: 'core', uniqueKeys: true, logLevel: 'error' });
  } catch (error) {
    throw new HyperMeshError(
      'config-invalid',
      `${file} is not valid YAML: ${(error as Error).message.split('\n', 1)[0]}`,
      {
        hint: 'Mend the file, or remove it to use the defaults.',
      },
    );
  }
  const parsed = configFile.safeParse(value ?? {});
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  const where = issue.path.length === 0 ? 'at the top level' : `at \`${issue.path.join('.')}\``;
  throw new HyperMeshError('config-invalid', `${file}, ${where}: ${issue.message}.`, {
    hint: 'docs/operate.md lists every key.',
  });
}

/** Errors: `config-invalid`, `storage-*`. */
export function readPassphrase(file: string): string {
  const text = readText(path.resolve(file), 'reading the passphrase file');
  if (text === undefined) {
    throw new HyperMeshError('config-invalid', `The passphrase file ${file} does not exist.`, {
      hint: 'Write the passphrase to that file with mode 0600, or leave the option out.',
    });
  }
  return text.replace(/\r?\n$/, '');
}

/** Undefined when there is no such file. */
function readText(file: string, doing: string): string | undefined {
  try {
    const text = readFileSync(file, 'utf8');
    if (text.length <= FILE_BYTES_MAX) return text;
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    throw storageError(error, `${doing} ${file}`);
  }
  throw new HyperMeshError('config-invalid', `${file} is larger than ${FILE_BYTES_MAX} bytes.`);
}

function nonEmpty(text: string | undefined, name: string): string | undefined {
  if (text === '') throw new HyperMeshError('config-invalid', `${name} is empty; expected the path of a folder.`);
  return text;
}

function refuseLevel(level: string): never {
  throw new HyperMeshError(
    'config-invalid',
    `Expected a log level of ${LOG_LEVELS.join(', ')}, but got "${level.slice(0, 50)}".`,
  );
}
