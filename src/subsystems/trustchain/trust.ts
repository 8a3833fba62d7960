import { chmod, mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { base64 } from '../../base/bytes.ts';
import type { Clock } from '../../base/clock.ts';
import { HyperMeshError, storageError } from '../../base/errors.ts';
import { openSqlite, type SqliteStore } from '../../base/sqlite.ts';
import type { StateSection } from '../../capabilities/state.ts';
import type { CertificateInfo, Trust, Verified } from '../../capabilities/trust.ts';
import type { CertificateRole, LeafRole, RevocationReason } from '../../wire/certificate.ts';
import { rootDigest, TREE_HEAD_TYPE, treeHeadPayload } from '../../wire/log.ts';
import {
  type CertificateChain,
  type Envelope,
  type LogInclusion,
  pae,
  SIGNATURE_LIMITS,
  type SignedTreeHead,
  sealEnvelope,
  type TrustAnchor,
} from '../../wire/signature.ts';
import { ChainCache } from './chain-cache.ts';
import { Keys } from './keys.ts';
import {
  checkUnlock,
  createUnlockFile,
  decodeSealed,
  newPassphraseKdf,
  readUnlockFile,
  type Unlock,
  unlockWithPassphrase,
} from './keystore.ts';
import { verifyEnvelope } from './offline.ts';
import { STAGED_PREFIX, trustSection } from './state-section.ts';
import { type CertificateRow, insertCertificate, MIGRATIONS, type RevocationListRow } from './tables.ts';
import { TransparencyLog } from './transparency-log.ts';

export interface TrustLimits {
  /** Validated chains that are remembered. */
  readonly chainsMax: number;
  /** Leaves that may wait for the log. */
  readonly logWaitingMax: number;
  /** After this long without a signature the key worker ends. */
  readonly keysIdleMs: number;
  /** Cost of the passphrase: scrypt with N = 2 to this power. For new homes only. */
  readonly passphraseLog2N: number;
}

export const LIMITS: TrustLimits = { chainsMax: 1_024, logWaitingMax: 10_000, keysIdleMs: 5_000, passphraseLog2N: 17 };

export interface TrustOptions {
  /** Of this home's trust data; made when missing, readable by its owner only. */
  readonly directory: string;
  readonly clock: Clock;
  /** Name of the network whose root a new home becomes; `local` by default. */
  readonly network?: string;
  /** Opens the key store. Without one, a random key file of mode 0600 does. */
  readonly passphrase?: string;
  /** Name of the person or machine in new certificates; `local` by default. */
  readonly subject?: string;
  readonly limits?: Partial<TrustLimits>;
}

const LEAF_ROLES = ['publisher', 'validator', 'node'] as const satisfies readonly LeafRole[];

const NAME = /^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,31}$/;

/**
 * Opens the trust data of a home, or makes it: keys, root, intermediate, publisher, validator and node certificates, and empty revocation lists.
 * Certificates with less than a third of their life left are renewed.
 * Errors: `key-locked` (passphrase missing or wrong), `key-invalid`, `network-mismatch`, `config-invalid`, `storage-*`.
 */
export async function openTrust(options: TrustOptions): Promise<TrustChain> {
  const network = options.network ?? 'local';
  const subject = options.subject ?? 'local';
  for (const [what, value] of Object.entries({ network, subject })) {
    if (!NAME.test(value)) {
      throw new HyperMeshError(
        'config-invalid',
        `The ${what} has to be 1 to 32 letters, digits, spaces or . _ @ -, starting with a letter or digit.`,
      );
    }
  }
  if (options.passphrase !== undefined) checkPassphrase(options.passphrase);
  const { directory } = options;
  try {
    await mkdir(directory, { recursive: true, mode: 0o700 });
    await chmod(directory, 0o700);
    for (const name of await readdir(directory)) {
      if (name.startsWith(STAGED_PREFIX)) await rm(join(directory, name), { force: true });
    }
  } catch (error) {
    throw storageError(error, `opening ${directory}`);
  }
  const store = openSqlite(join(directory, 'trust.db'), MIGRATIONS);
  try {
    return await TrustChain.open(store, { ...options, network, subject, limits: { ...LIMITS, ...options.limits } });
  } catch (error) {
    await store[Symbol.asyncDispose]();
    throw error;
  }
}

/** Errors: `config-invalid`. */
export function checkPassphrase(passphrase: string): void {
  if (passphrase === '' || passphrase.length > 1_024)
    throw new HyperMeshError('config-invalid', 'The passphrase has to have 1 to 1024 characters.');
}

interface Settled extends TrustOptions {
  readonly network: string;
  readonly subject: string;
  readonly limits: TrustLimits;
}

/** The trust subsystem of one home. Secret keys stay in the key worker; everything else is in `trust.db`. */
export class TrustChain implements Trust, AsyncDisposable {
  readonly section: StateSection;
  readonly #store: SqliteStore;
  readonly #options: Settled;
  readonly #cache: ChainCache;
  readonly #log: TransparencyLog;
  #keys: Keys;
  #anchor: TrustAnchor | undefined;
  /** The last of the changes to certificates and lists: they happen one after the other. */
  #changing: Promise<unknown> = Promise.resolve();

  /** Use {@link openTrust}. */
  static async open(store: SqliteStore, options: Settled): Promise<TrustChain> {
    const ready = store.raw.prepare('SELECT value FROM setting WHERE name = ?').get('network');
    if (ready !== undefined && options.network !== 'local' && ready['value'] !== options.network) {
      throw new HyperMeshError(
        'network-mismatch',
        `This home belongs to the network "${ready['value'] as string}", not "${options.network}".`,
        {
          hint: 'Use another --home for another network.',
        },
      );
    }
    const sealed = sealedIn(store);
    const unlock = await openUnlock(options, sealed);
    const keys = new Keys(unlock, sealed, { idleMs: options.limits.keysIdleMs });
    const trust = new TrustChain(store, options, keys);
    try {
      if (ready === undefined) await trust.#found();
      await trust.#exclusive(async () => {
        await trust.#keepCurrent();
        await trust.#addNodeKey();
      });
      return trust;
    } catch (error) {
      await keys[Symbol.asyncDispose]();
      throw error;
    }
  }

  private constructor(store: SqliteStore, options: Settled, keys: Keys) {
    this.#store = store;
    this.#options = options;
    this.#keys = keys;
    this.#cache = new ChainCache(options.limits);
    this.#log = new TransparencyLog(
      {
        raw: store.raw,
        transact: (write) => store.transact(write),
        signHead: (size, root) => this.#signHead(size, root),
      },
      { waitingMax: options.limits.logWaitingMax },
    );
    this.section = trustSection({
      store,
      directory: options.directory,
      checkKeys: (texts) => this.#unlockFor(texts),
      switched: (unlock) => this.#switched(unlock),
      // The log first: a batch that is under way may need a renewal to finish.
      exclusive: (change) => this.#log.between(() => this.#exclusive(change)),
    });
  }

  async identity(role: LeafRole): Promise<CertificateInfo & { readonly chain: CertificateChain }> {
    const row = await this.#current(role);
    return { ...this.#describe(row), chain: this.#chainOf(row) };
  }

  async sign(role: LeafRole, payloadType: string, payload: Uint8Array): Promise<Envelope> {
    if (payload.length > SIGNATURE_LIMITS.payloadBytesMax) {
      throw new HyperMeshError(
        'limit-exceeded',
        `At most ${SIGNATURE_LIMITS.payloadBytesMax} bytes can be signed at once, but there are ${payload.length}.`,
        {
          hint: 'Sign the digest of the content instead.',
        },
      );
    }
    if (
      payloadType.length > SIGNATURE_LIMITS.payloadTypeLengthMax ||
      !/^[a-z]+\/[a-z0-9][a-z0-9.+-]*$/.test(payloadType)
    ) {
      throw new HyperMeshError(
        'usage',
        'The payload type has to be a media type in lower case, at most 128 characters.',
      );
    }
    const { key_id } = await this.#current(role);
    return sealEnvelope(payloadType, payload, key_id, await this.#keys.sign(role, pae(payloadType, payload)));
  }

  async verify(
    envelope: Envelope,
    chain: CertificateChain,
    options: { readonly role: LeafRole; readonly atMs?: number; readonly anchor?: TrustAnchor },
  ): Promise<Verified> {
    return verifyEnvelope(envelope, chain, options.anchor ?? (await this.anchor()), {
      role: options.role,
      atMs: options.atMs ?? this.#options.clock.nowMs(),
      cache: this.#cache,
    });
  }

  /** With current lists: those past half of their life are issued anew. */
  async anchor(): Promise<TrustAnchor> {
    const due = (list: RevocationListRow) => list.next_update_ms - this.#nowMs < listLifeLeftMin(list.issuer);
    if (this.#lists().some(due)) await this.#exclusive(() => this.#refreshLists());
    this.#anchor ??= {
      root: base64(this.#newest('root')!.der),
      revocations: this.#lists().map((list) => base64(list.der)),
    };
    return this.#anchor;
  }

  async certificates(): Promise<readonly CertificateInfo[]> {
    return this.#rows().map((row) => this.#describe(row));
  }

  async renew(role: LeafRole): Promise<CertificateInfo> {
    return this.#exclusive(async () => {
      const compromised = this.#rows().some((row) => row.role === role && row.revoked_reason === 'key-compromise');
      if (compromised) {
        throw new HyperMeshError(
          'certificate-revoked',
          `The ${role} key was revoked as compromised; it gets no new certificate.`,
          {
            hint: 'Start a new home, which makes new keys.',
          },
        );
      }
      return this.#describe(await this.#issueAgain(role));
    });
  }

  async revoke(fingerprint: string, reason: RevocationReason): Promise<void> {
    await this.#exclusive(async () => {
      const target = this.#rows().find((row) => row.fingerprint === fingerprint);
      if (target === undefined) {
        throw new HyperMeshError(
          'certificate-not-found',
          `This home has issued no certificate with the fingerprint ${fingerprint.slice(0, 64)}.`,
          {
            hint: '`hypermesh cert` lists them.',
          },
        );
      }
      if (target.role === 'root') {
        throw new HyperMeshError('usage', 'The root of a network cannot be revoked.', { hint: 'Start a new network.' });
      }
      // The other certificates of a stolen key are as good to the thief as this one.
      const targets = this.#rows().filter(
        (row) =>
          // A reason is never weakened, but a certificate that was only superseded is worth nothing once its key is stolen.
          (row.revoked_at_ms === null || (reason === 'key-compromise' && row.revoked_reason !== 'key-compromise')) &&
          (row.fingerprint === fingerprint || (reason === 'key-compromise' && row.key_id === target.key_id)),
      );
      if (targets.length === 0) return;
      const atMs = this.#nowMs;
      const authority = target.role === 'intermediate' ? 'root' : 'intermediate';
      const list = await this.#nextList(
        authority,
        targets.map(({ serial }) => ({ serial, atMs, reason })),
      );
      // The commit point: before it nothing is revoked, after it the rows and the list that says so are both there.
      this.#store.transact((raw) => {
        const mark = raw.prepare('UPDATE certificate SET revoked_at_ms = ?, revoked_reason = ? WHERE fingerprint = ?');
        for (const row of targets) mark.run(atMs, reason, row.fingerprint);
        this.#putList(list);
      });
      this.#anchor = undefined;
    });
  }

  logAppend(leaf: Uint8Array): Promise<LogInclusion> {
    return this.#log.append(leaf);
  }

  logHead(): Promise<SignedTreeHead> {
    return this.#log.head();
  }

  logConsistency(from: number, to: number): Promise<readonly string[]> {
    return this.#log.consistency(from, to);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#log.settled();
    await this.#changing.catch(() => undefined);
    await this.#keys[Symbol.asyncDispose]();
    await this.#store[Symbol.asyncDispose]();
  }

  /**
   * Makes keys, certificates and lists, and stores them in one transaction: a crash before it leaves nothing (but perhaps an unused key
   * file, which is taken up again), a crash after it the complete set.
   */
  async #found(): Promise<void> {
    const { issue, issueList } = await import('./issue.ts');
    const { network, subject } = this.#options;
    const sealed = await this.#keys.seal([['root'], ['intermediate', ...LEAF_ROLES]]);
    await this.#keys.use(sealed);
    const publicKeys = await this.#keys.publicKeys();
    const nowMs = this.#nowMs;
    const make = (role: CertificateRole, issuer?: CertificateRow) =>
      issue(
        { role, network, subject, keys: publicKeys.get(role)!, nowMs, ...(issuer === undefined ? {} : { issuer }) },
        this.#keys.authority(authorityOf(role)),
      );
    const root = await make('root');
    const intermediate = await make('intermediate', root);
    const rows = [root, intermediate];
    for (const role of LEAF_ROLES) rows.push(await make(role, intermediate));
    const first = { number: 1, nowMs, revoked: [] };
    const lists = [
      await issueList(root, first, this.#keys.authority('root')),
      await issueList(intermediate, first, this.#keys.authority('intermediate')),
    ];
    this.#store.transact((raw) => {
      const keystore = raw.prepare('INSERT INTO keystore (name, sealed) VALUES (?, ?)');
      keystore.run('root', sealed[0]!);
      keystore.run('node', sealed[1]!);
      for (const row of rows) insertCertificate(raw, row);
      for (const list of lists) this.#putList(list);
      raw.prepare('INSERT INTO setting (name, value) VALUES (?, ?)').run('network', network);
    });
  }

  /** A home or an export of an earlier version has no node key. Key and certificate appear in one transaction, or are made at the next start. */
  async #addNodeKey(): Promise<void> {
    const { sealed: before } = this.#store.raw.prepare("SELECT sealed FROM keystore WHERE name = 'node'").get() as {
      sealed: string;
    };
    const { keys: names } = decodeSealed(before);
    const issuer = this.#newest('intermediate');
    if (names.includes('node') || issuer === undefined || issuer.not_after_ms <= this.#nowMs) return;
    const { issue } = await import('./issue.ts');
    const [sealed] = await this.#keys.seal([[...names, 'node']]);
    const keys = (await this.#keys.publicKeys()).get('node')!;
    const { subject } = this.#options;
    const network = this.#network() ?? this.#options.network;
    const row = await issue(
      { role: 'node', network, subject, keys, nowMs: this.#nowMs, issuer },
      this.#keys.authority('intermediate'),
    );
    this.#store.transact((raw) => {
      raw.prepare("UPDATE keystore SET sealed = ? WHERE name = 'node'").run(sealed!);
      insertCertificate(raw, row);
    });
    await this.#keys.use(sealedIn(this.#store));
  }

  /** Renews what has less than a third of its life left. What was revoked is not renewed by itself. */
  async #keepCurrent(): Promise<void> {
    for (const role of ['intermediate', ...LEAF_ROLES] as const) {
      const row = this.#newest(role);
      if (row === undefined || !this.#isAging(row)) continue;
      if (row.not_after_ms === this.#newest(authorityOf(role))?.not_after_ms) continue;
      try {
        await this.#issueAgain(role);
      } catch (error) {
        // Without the root key at hand the intermediate is used to its end.
        if (row.not_after_ms < this.#nowMs || role !== 'intermediate') throw error;
      }
    }
  }

  async #issueAgain(role: Exclude<CertificateRole, 'root'>): Promise<CertificateRow> {
    const { issue, keysIn } = await import('./issue.ts');
    const known = this.#rows().find((row) => row.role === role);
    const authority = authorityOf(role);
    const issuer = this.#newest(authority);
    if (known === undefined || issuer === undefined) {
      throw new HyperMeshError(
        'certificate-revoked',
        `The ${authority} of this home was revoked; it cannot issue certificates.`,
        {
          hint: 'Start a new home.',
        },
      );
    }
    if (issuer.not_after_ms <= this.#nowMs) {
      throw new HyperMeshError('certificate-expired', `The ${authority} certificate of this home has expired.`, {
        hint: 'Start the node with the root key at hand; it renews the intermediate by itself.',
      });
    }
    const { network, subject } = this.#options;
    const row = await issue(
      { role, network: this.#network() ?? network, subject, keys: keysIn(known), nowMs: this.#nowMs, issuer },
      this.#keys.authority(authority),
    );
    this.#store.transact((raw) => insertCertificate(raw, row));
    return row;
  }

  /** The certificate to sign with now. */
  async #current(role: LeafRole): Promise<CertificateRow> {
    let row = this.#newest(role);
    if (row !== undefined && this.#isAging(row)) {
      await this.#exclusive(() => this.#keepCurrent());
      row = this.#newest(role);
    }
    if (row === undefined) {
      throw new HyperMeshError('certificate-revoked', `The ${role} certificate of this home was revoked.`, {
        hint: `Issue a new one: hypermesh cert renew ${role}`,
      });
    }
    if (row.not_after_ms < this.#nowMs || row.not_before_ms > this.#nowMs) {
      throw new HyperMeshError('certificate-expired', `The ${role} certificate of this home is not valid now.`, {
        hint: 'Check the clock of this machine, then restart the node: it renews certificates when it starts.',
      });
    }
    return row;
  }

  async #signHead(size: number, root: Uint8Array): Promise<SignedTreeHead> {
    const { key_id, chain } = await this.#current('validator').then((row) => ({ ...row, chain: this.#chainOf(row) }));
    const head = {
      origin: `${this.#network() ?? this.#options.network}/log/${key_id.slice(0, 16)}`,
      size,
      root: rootDigest(root),
      timestampMs: this.#nowMs,
    };
    return { ...head, envelope: await this.sign('validator', TREE_HEAD_TYPE, treeHeadPayload(head)), chain };
  }

  async #refreshLists(): Promise<void> {
    for (const list of this.#lists()) {
      if (list.next_update_ms - this.#nowMs >= listLifeLeftMin(list.issuer)) continue;
      try {
        const next = await this.#nextList(list.issuer, []);
        this.#store.transact(() => this.#putList(next));
      } catch (error) {
        // The old one is good for as long as it says.
        if (list.next_update_ms < this.#nowMs) throw error;
      }
    }
    this.#anchor = undefined;
  }

  async #nextList(
    authority: 'root' | 'intermediate',
    added: readonly { readonly serial: string; readonly atMs: number; readonly reason: RevocationReason }[],
  ): Promise<RevocationListRow> {
    const { issueList } = await import('./issue.ts');
    // Any certificate of the authority will do: they share name and keys.
    const issuer = this.#rows().find((row) => row.role === authority)!;
    const number = (this.#lists().find((list) => list.issuer === authority)?.number ?? 0) + 1;
    const replaced = new Set(added.map(({ serial }) => serial));
    const before = this.#rows()
      .filter((row) => authorityOf(row.role) === authority && row.role !== 'root' && !replaced.has(row.serial))
      .flatMap(({ serial, revoked_at_ms: atMs, revoked_reason: reason }) =>
        atMs === null || reason === null ? [] : [{ serial, atMs, reason }],
      );
    return issueList(
      issuer,
      { number, nowMs: this.#nowMs, revoked: [...before, ...added] },
      this.#keys.authority(authority),
    );
  }

  #putList(list: RevocationListRow): void {
    this.#store.raw
      .prepare('INSERT OR REPLACE INTO revocation_list (issuer, number, der, next_update_ms) VALUES (?, ?, ?, ?)')
      .run(list.issuer, list.number, list.der, list.next_update_ms);
  }

  /** Newest first. */
  #rows(): CertificateRow[] {
    return this.#store.raw
      .prepare('SELECT * FROM certificate ORDER BY not_after_ms DESC, rowid DESC')
      .all() as unknown as CertificateRow[];
  }

  #newest(role: CertificateRole): CertificateRow | undefined {
    return this.#rows().find((row) => row.role === role && row.revoked_at_ms === null);
  }

  #lists(): RevocationListRow[] {
    return this.#store.raw
      .prepare('SELECT * FROM revocation_list ORDER BY issuer')
      .all() as unknown as RevocationListRow[];
  }

  #chainOf(leaf: CertificateRow): CertificateChain {
    const intermediate = this.#rows().find((row) => row.role === 'intermediate')!;
    return [leaf, this.#newest('intermediate') ?? intermediate, this.#newest('root')!].map((row) => base64(row.der));
  }

  #network(): string | undefined {
    return this.#store.raw.prepare('SELECT value FROM setting WHERE name = ?').get('network')?.['value'] as
      | string
      | undefined;
  }

  #describe(row: CertificateRow): CertificateInfo {
    const nowMs = this.#nowMs;
    return {
      fingerprint: row.fingerprint,
      serial: row.serial,
      subject: row.subject,
      issuer: row.issuer,
      role: row.role,
      notBeforeMs: row.not_before_ms,
      notAfterMs: row.not_after_ms,
      keyId: row.key_id,
      status:
        row.revoked_at_ms !== null
          ? 'revoked'
          : nowMs < row.not_before_ms
            ? 'not-yet-valid'
            : nowMs > row.not_after_ms
              ? 'expired'
              : 'valid',
    };
  }

  #isAging(row: CertificateRow): boolean {
    return row.not_after_ms - this.#nowMs < (row.not_after_ms - row.not_before_ms) / 3;
  }

  get #nowMs(): number {
    return this.#options.clock.nowMs();
  }

  #exclusive<T>(change: () => Promise<T>): Promise<T> {
    const result = this.#changing.then(change, change);
    this.#changing = result.catch(() => undefined);
    return result;
  }

  /** Whether imported key documents open here. Errors: `key-locked`, `key-invalid`. */
  async #unlockFor(sealed: readonly string[]): Promise<Unlock> {
    const unlock = await openUnlock(this.#options, sealed);
    for (const text of sealed) checkUnlock(text, unlock);
    return unlock;
  }

  async #switched(unlock: Unlock | undefined): Promise<void> {
    this.#anchor = undefined;
    this.#cache.clear();
    if (unlock === undefined) return;
    const before = this.#keys;
    this.#keys = new Keys(unlock, sealedIn(this.#store), { idleMs: this.#options.limits.keysIdleMs });
    await before[Symbol.asyncDispose]();
    await this.#addNodeKey();
  }
}

function authorityOf(role: CertificateRole): 'root' | 'intermediate' {
  return role === 'root' || role === 'intermediate' ? 'root' : 'intermediate';
}

const DAY_MS = 86_400_000;

/** A list with less time than this left is issued anew. */
function listLifeLeftMin(issuer: 'root' | 'intermediate'): number {
  return issuer === 'root' ? 180 * DAY_MS : 3 * DAY_MS;
}

export function sealedIn(store: SqliteStore): string[] {
  return store.raw
    .prepare('SELECT sealed FROM keystore ORDER BY name')
    .all()
    .map((row) => row['sealed'] as string);
}

/** Finds what opens the key store, and makes sure that it does. For a new home: makes it. */
export async function openUnlock(
  options: { readonly directory: string; readonly passphrase?: string | undefined; readonly limits: TrustLimits },
  sealed: readonly string[],
): Promise<Unlock> {
  const { directory, passphrase, limits } = options;
  const [first] = sealed;
  if (first === undefined) {
    if (passphrase === undefined) return (await readUnlockFile(directory)) ?? createUnlockFile(directory);
    return unlockWithPassphrase(passphrase, newPassphraseKdf(limits.passphraseLog2N));
  }
  const { kdf } = decodeSealed(first);
  if (kdf.name === 'scrypt') {
    if (passphrase === undefined) {
      throw new HyperMeshError('key-locked', 'The key store is encrypted with a passphrase, and none was given.', {
        hint: 'Give the passphrase that this home was created with, or the one it was given last.',
      });
    }
    const unlock = await unlockWithPassphrase(passphrase, kdf);
    checkUnlock(first, unlock);
    return unlock;
  }
  if (passphrase !== undefined) {
    throw new HyperMeshError('key-locked', 'The key store is opened by its key file, not by a passphrase.', {
      hint: 'Start without a passphrase; to have one, run `hypermesh passphrase`.',
    });
  }
  const unlock = await readUnlockFile(directory);
  if (unlock === undefined || unlock.kdf.name !== 'file' || unlock.kdf.id !== kdf.id) {
    throw new HyperMeshError(
      'key-invalid',
      unlock === undefined
        ? `The key file unlock.key is missing from ${directory}.`
        : 'The key file unlock.key belongs to another home.',
      { hint: 'Restore it from the same backup as the home.' },
    );
  }
  return unlock;
}
