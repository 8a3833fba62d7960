import { chmod, mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { base64, equal } from '../../base/bytes.ts';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError, isCoded, storageError } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import { openSqlite, type SqliteStore } from '../../base/sqlite.ts';
import type { StateSection } from '../../capabilities/state.ts';
import type { CertificateInfo, Trust, Verified } from '../../capabilities/trust.ts';
import type { Attestation, FastAttestation, ValidatorKeys } from '../../wire/attestation.ts';
import type { CertificateRole, LeafRole, RevocationReason } from '../../wire/certificate.ts';
import {
  CERTIFICATION_TYPE,
  CERTIFIED_ROLES,
  type Certification,
  type CommitteeSeat,
  certificationPayload,
  type JoinRequest,
  secretHash,
} from '../../wire/certification.ts';
import { rootDigest, TREE_HEAD_TYPE, treeHeadPayload, verifyInclusion } from '../../wire/log.ts';
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
import { Attester, envelopeHolds, wordHolds } from './attester.ts';
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
import type { Certified, MemberRow, Members } from './members.ts';
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

/** What a member asks of its network. */
export interface NetworkAuthority {
  /** What is known of revocations today, and where the committee is. Errors: `committee-unreachable`. */
  news(): Promise<{ readonly anchor: TrustAnchor; readonly committee: readonly CommitteeSeat[] }>;
  /** New certificates for the same keys. Errors: `committee-unreachable`, `not-a-member`, `certificate-revoked`. */
  renew(request: (asked: string) => Promise<JoinRequest>): Promise<Certification>;
  /** Errors: `committee-unreachable`, and what the committee refuses with. */
  /** The committee makes the leaf itself, from a certificate that it checks. */
  logAppend(leaf: Uint8Array, certificate: Json): Promise<LogInclusion>;
  logHead(): Promise<SignedTreeHead>;
  logConsistency(from: number, to: number): Promise<readonly string[]>;
}

/** Of a home that is a member of a network which another home founded. */
export interface StoredMembership {
  readonly networkId: Digest;
  readonly committee: readonly CommitteeSeat[];
  readonly joinedAtMs: number;
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
  readonly #attester: Attester;
  /** Of this home's validator; null when they may have changed. */
  #validator: Promise<ValidatorKeys> | null = null;
  #keys: Keys;
  #anchor: TrustAnchor | undefined;
  #authority: NetworkAuthority | undefined;
  #members: Promise<Members> | undefined;
  /** What was asked of the network for later, and until when it is not asked again. */
  readonly #asking = new Map<'news' | 'renew', { readonly work: Promise<void>; readonly untilMs: number }>();
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
        // A member asks its network, once it can be reached.
        if (trust.membership() !== null) return;
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
    this.#attester = new Attester({
      ed25519: (messages) => this.#keys.signAll('validator', messages),
      falcon: (message) => this.#keys.authority('validator').falcon(message),
    });
    this.section = trustSection({
      store,
      directory: options.directory,
      checkKeys: (texts) => this.#unlockFor(texts),
      ownKeyIds: async () => {
        const [keys, { keyIdOf }] = await Promise.all([this.#keys.publicKeys(), import('../../wire/key-id.ts')]);
        return new Map([...keys].map(([name, pair]) => [name, keyIdOf(pair)]));
      },
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

  async attest(payloadType: string, statement: unknown): Promise<Attestation> {
    const { key } = await this.validatorKeys();
    return this.#attester.attest(key, payloadType, statement);
  }

  async attestFast(payloadType: string, statement: unknown): Promise<FastAttestation> {
    const { key } = await this.validatorKeys();
    return this.#attester.attestFast(key, payloadType, statement);
  }

  async attested(
    word: FastAttestation | Attestation,
    payloadType: string,
    statement: unknown,
    keys: Pick<ValidatorKeys, 'falcon' | 'ed25519'>,
  ): Promise<boolean> {
    return wordHolds(word, payloadType, statement, keys);
  }

  async signedBy(envelope: Envelope, keys: Pick<ValidatorKeys, 'falcon' | 'ed25519'>): Promise<boolean> {
    return envelopeHolds(envelope, keys);
  }

  async publicKeys(role: LeafRole): Promise<{ readonly falcon: string; readonly ed25519: string }> {
    // A certificate has them in the clear: a node starts, and idles, without the worker that opens the secret keys.
    const { keysIn } = await import('./issue.ts');
    const keys = keysIn(this.#rows().find((row) => row.role === role)!);
    return { falcon: base64(keys.falcon), ed25519: base64(keys.ed25519) };
  }

  validatorKeys(): Promise<ValidatorKeys> {
    this.#validator ??= this.#readValidator().catch((error: unknown) => {
      this.#validator = null;
      throw error;
    });
    return this.#validator;
  }

  async #readValidator(): Promise<ValidatorKeys> {
    const { validator: key, publisher: account } = this.keyIds();
    return { key, ...(await this.publicKeys('validator')), account };
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

  /**
   * With current lists: those past half of their life are issued anew, or by a member asked for.
   * Errors: `anchor-stale` of a member whose lists are out of date, while the committee cannot be reached.
   */
  async anchor(): Promise<TrustAnchor> {
    const due = (list: RevocationListRow) => list.next_update_ms - this.#nowMs < listLifeLeftMin(list.issuer);
    const isDue = this.#lists().some(due);
    if (this.membership() !== null) {
      const isStale = this.#lists().some((list) => list.next_update_ms < this.#nowMs);
      if (isStale) await this.#freshLists();
      else if (isDue) this.#inBackground('news', () => this.refreshAnchor());
    } else if (isDue) {
      await this.#exclusive(() => this.#refreshLists());
    }
    return this.#anchorNow();
  }

  #anchorNow(): TrustAnchor {
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
      this.#checkRenewable(role);
      if (this.membership() !== null) {
        await this.#renewFromNetwork();
        return this.#describe(this.#newest(role)!);
      }
      return this.#describe(await this.#issueAgain(role));
    });
  }

  async revoke(fingerprint: string, reason: RevocationReason): Promise<void> {
    this.#committeeOnly('revoke certificates');
    const issued = (await this.#register()).issued().find((row) => row.fingerprint === fingerprint);
    if (issued !== undefined) {
      // Of a member everything is taken back: one certificate alone says nothing about the others of the same home.
      await this.removeMember(issued.node, reason);
      return;
    }
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

  async logAppend(leaf: Uint8Array, certificate: Json): Promise<LogInclusion> {
    if (this.membership() === null) return this.logHere(leaf);
    const inclusion = await this.#followed().logAppend(leaf, certificate);
    verifyInclusion(leaf, inclusion);
    await this.#checkHead(inclusion.head);
    return inclusion;
  }

  /** In the log of this home's validator, whose word counts where it has a seat. */
  logHere(leaf: Uint8Array): Promise<LogInclusion> {
    return this.#log.append(leaf);
  }

  async logHead(): Promise<SignedTreeHead> {
    if (this.membership() === null) return this.#log.head();
    const head = await this.#followed().logHead();
    await this.#checkHead(head);
    return head;
  }

  async logConsistency(from: number, to: number): Promise<readonly string[]> {
    return this.membership() === null ? this.#log.consistency(from, to) : this.#followed().logConsistency(from, to);
  }

  // --- of a founder

  /** Whether this home opened its own network to others. */
  isFounder(): boolean {
    return this.#store.raw.prepare("SELECT 1 FROM setting WHERE name = 'founder'").get() !== undefined;
  }

  /** Durable when it returns. Errors: `committee-only`. */
  setFounder(isFounder: boolean): void {
    this.#committeeOnly('open a network');
    if (isFounder) this.#store.raw.exec("INSERT OR IGNORE INTO setting (name, value) VALUES ('founder', 'yes')");
    else this.#store.raw.exec("DELETE FROM setting WHERE name = 'founder'");
  }

  /** A secret that lets one home in. Errors: `committee-only`, `quota-exceeded`. */
  async invite(options: { readonly expiresAtMs: number; readonly tokens: number }): Promise<string> {
    this.#committeeOnly('invite');
    return (await this.#register()).invite(options.expiresAtMs, options.tokens);
  }

  /** Certifies who asks with an invite, or who is a member already. Errors: `committee-only`, and those of {@link Members.certify}. */
  async certify(
    request: unknown,
    networkId: Digest,
  ): Promise<Certified & Pick<Certification, 'network' | 'anchor' | 'authorities'>> {
    this.#committeeOnly('certify');
    const register = await this.#register();
    const certified = await this.#exclusive(() => register.certify(request, networkId));
    return {
      ...certified,
      network: this.#network() ?? this.#options.network,
      anchor: await this.anchor(),
      authorities: [base64(this.#newest('intermediate')!.der)],
    };
  }

  async members(): Promise<readonly MemberRow[]> {
    return (await this.#register()).members();
  }

  async member(node: string): Promise<MemberRow | undefined> {
    return (await this.#register()).member(node);
  }

  /** Takes all certificates of a member back. Safe to repeat. Errors: `committee-only`, `not-a-member`. */
  async removeMember(node: string, reason: RevocationReason): Promise<MemberRow> {
    this.#committeeOnly('remove members');
    const register = await this.#register();
    return this.#exclusive(async () => {
      if (register.member(node) === undefined) {
        throw new HyperMeshError('not-a-member', `No node ${node.slice(0, 64)} ever joined this network.`, {
          hint: '`hypermesh network members` lists them.',
        });
      }
      const atMs = this.#nowMs;
      const targets = register.revocable(node, reason);
      const list =
        targets.length === 0
          ? undefined
          : await this.#nextList(
              'intermediate',
              targets.map(({ serial }) => ({ serial, atMs, reason })),
            );
      // The commit point: before it the node is a member, after it its certificates are on the list.
      this.#store.transact((raw) => {
        const mark = raw.prepare('UPDATE issued SET revoked_at_ms = ?, revoked_reason = ? WHERE fingerprint = ?');
        for (const row of targets) mark.run(atMs, reason, row.fingerprint);
        raw.prepare('UPDATE member SET left_at_ms = coalesce(left_at_ms, ?) WHERE node = ?').run(atMs, node);
        if (list !== undefined) this.#putList(list);
      });
      this.#anchor = undefined;
      return register.member(node)!;
    });
  }

  // --- of a member

  /** On which nodes the publishers with seats are, by key id, as far as this home was told once. */
  machines(): ReadonlyMap<string, string> {
    const row = this.#store.raw.prepare("SELECT value FROM setting WHERE name = 'machines'").get();
    return new Map(row === undefined ? [] : Object.entries(JSON.parse(row['value'] as string) as object));
  }

  /** In the place of those that were known. Durable when it returns. */
  rememberMachines(machines: ReadonlyMap<string, string>): void {
    this.#store.raw
      .prepare("INSERT OR REPLACE INTO setting (name, value) VALUES ('machines', ?)")
      .run(JSON.stringify(Object.fromEntries(machines)));
  }

  /** When this home learned that the epoch began, by its own clock; null for any but the last one that it noted. */
  epochSeenAtMs(epoch: number): number | null {
    const row = this.#store.raw.prepare("SELECT value FROM setting WHERE name = 'epoch'").get();
    const seen = row === undefined ? null : (JSON.parse(row['value'] as string) as { epoch: number; atMs: number });
    return seen?.epoch === epoch ? seen.atMs : null;
  }

  /** From now on it is known. Safe to repeat. */
  noteEpoch(epoch: number): void {
    if (this.epochSeenAtMs(epoch) !== null) return;
    this.#store.raw
      .prepare("INSERT OR REPLACE INTO setting (name, value) VALUES ('epoch', ?)")
      .run(JSON.stringify({ epoch, atMs: this.#nowMs }));
  }

  /** Null in a network of its own. */
  membership(): StoredMembership | null {
    const row = this.#store.raw.prepare('SELECT json FROM membership').get();
    return row === undefined ? null : (JSON.parse(row['json'] as string) as StoredMembership);
  }

  /** Who is asked from here on. */
  follow(authority: NetworkAuthority | undefined): void {
    this.#authority = authority;
  }

  /**
   * A request that all three keys of this home signed; expired certificates do not matter. `secret`: of an invite, null for a renewal.
   * Errors: `certificate-revoked` when a key of this home was stolen.
   */
  async certificationRequest(to: {
    readonly networkId: Digest;
    readonly asked: string;
    readonly secret: string | null;
  }): Promise<JoinRequest> {
    await this.#checkNotStolen();
    const publicKeys = await this.#keys.publicKeys();
    const keys = Object.fromEntries(
      CERTIFIED_ROLES.map((role) => {
        const { falcon, ed25519 } = publicKeys.get(role)!;
        return [role, { falcon: base64(falcon), ed25519: base64(ed25519) }];
      }),
    ) as Readonly<Record<LeafRole, { readonly falcon: string; readonly ed25519: string }>>;
    const payload = certificationPayload({
      formatVersion: 1,
      networkId: to.networkId,
      asked: to.asked,
      invite: to.secret === null ? null : secretHash(to.secret),
      subject: this.subject(),
      keys,
      madeAtMs: this.#nowMs,
    });
    const ids = this.keyIds();
    const sealed = await Promise.all(
      CERTIFIED_ROLES.map(async (role) =>
        sealEnvelope(
          CERTIFICATION_TYPE,
          payload,
          ids[role],
          await this.#keys.sign(role, pae(CERTIFICATION_TYPE, payload)),
        ),
      ),
    );
    return { secret: to.secret, envelopes: sealed as unknown as JoinRequest['envelopes'] };
  }

  /** Whether {@link adopt} will take it, at the time `answer.atMs`. Touches nothing. Errors: `certification-invalid`, `clock-skewed`. */
  async checkCertification(answer: Certification): Promise<void> {
    const { checkCertification } = await import('./joining.ts');
    checkCertification(answer, this.keyIds(), answer.atMs);
  }

  /** Whether {@link abandon} will work. Touches nothing. Errors: `certificate-revoked` when a key of this home was stolen, `key-locked`. */
  async checkAbandon(): Promise<void> {
    await this.#checkNotStolen();
    await this.#ownAuthority(this.#options.network);
  }

  /**
   * From here on the certificates of this home are those of the network: one transaction that replaces certificates, lists and log. Safe to repeat.
   * The answer was checked before it was kept for this, so the time does not count any more.
   */
  async adopt(answer: Certification, membership: StoredMembership): Promise<void> {
    const { checkCertification } = await import('./joining.ts');
    await this.#log.between(() =>
      this.#exclusive(async () => {
        const adopted = checkCertification(answer, this.keyIds(), answer.atMs);
        this.#replace([...adopted.authorities, ...adopted.leaves], adopted.lists, answer.network, membership);
      }),
    );
  }

  /** Back to a root of its own, with the same keys: one transaction. Does nothing in a home that is no member. */
  async abandon(): Promise<void> {
    await this.#log.between(() =>
      this.#exclusive(async () => {
        if (this.membership() === null) return;
        const { rows, lists } = await this.#ownAuthority(this.#options.network);
        this.#replace(rows, lists, this.#options.network, null);
      }),
    );
  }

  /** Asks the network what was revoked. Older lists than the known ones change nothing. Errors: `committee-unreachable`, `certification-invalid`. */
  async refreshAnchor(): Promise<void> {
    const membership = this.membership();
    if (membership === null) return;
    const { anchor, committee } = await this.#followed().news();
    const { newestLists } = await import('./joining.ts');
    if (anchor.root !== this.#anchorNow().root) {
      throw new HyperMeshError('certification-invalid', 'The committee answered with the root of another network.');
    }
    const authorities = this.#rows().filter(({ role }) => role === 'root' || role === 'intermediate');
    const known = new Map(this.#lists().map((list) => [list.issuer, list.number]));
    const newer = newestLists(anchor, authorities).filter((list) => list.number > (known.get(list.issuer) ?? -1));
    // Only where the known ones are: who sits in the committee is not the word of one answer.
    const seats = membership.committee.map((seat) => committee.find(({ node }) => node === seat.node) ?? seat);
    const moved = JSON.stringify(seats) !== JSON.stringify(membership.committee);
    if (newer.length === 0 && !moved) return;
    this.#store.transact((raw) => {
      for (const list of newer) this.#putList(list);
      raw.prepare('UPDATE membership SET json = ?').run(JSON.stringify({ ...membership, committee: seats }));
    });
    this.#anchor = undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#log.settled();
    await Promise.all([...this.#asking.values()].map(({ work }) => work));
    await this.#changing.catch(() => undefined);
    await this.#keys[Symbol.asyncDispose]();
    await this.#store[Symbol.asyncDispose]();
  }

  /**
   * Makes keys, certificates and lists, and stores them in one transaction: a crash before it leaves nothing (but perhaps an unused key
   * file, which is taken up again), a crash after it the complete set.
   */
  async #found(): Promise<void> {
    const { network } = this.#options;
    const sealed = await this.#keys.seal([['root'], ['intermediate', ...LEAF_ROLES]]);
    await this.#keys.use(sealed);
    const { rows, lists } = await this.#ownAuthority(network);
    this.#store.transact((raw) => {
      const keystore = raw.prepare('INSERT INTO keystore (name, sealed) VALUES (?, ?)');
      keystore.run('root', sealed[0]!);
      keystore.run('node', sealed[1]!);
      for (const row of rows) insertCertificate(raw, row);
      for (const list of lists) this.#putList(list);
      raw.prepare('INSERT INTO setting (name, value) VALUES (?, ?)').run('network', network);
    });
  }

  /** Certificates and empty lists of a network whose root is this home's. */
  async #ownAuthority(
    network: string,
  ): Promise<{ readonly rows: readonly CertificateRow[]; readonly lists: readonly RevocationListRow[] }> {
    const { issue, issueList } = await import('./issue.ts');
    const subject = this.subject();
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
    return { rows, lists };
  }

  /** The commit point of joining and leaving, for this part of the home: before it the one network, after it the other. */
  #replace(
    rows: readonly CertificateRow[],
    lists: readonly RevocationListRow[],
    network: string,
    membership: StoredMembership | null,
  ): void {
    this.#store.transact((raw) => {
      for (const table of [
        'certificate',
        'revocation_list',
        'leaf',
        'node',
        'head',
        'invite',
        'member',
        'issued',
        'membership',
      ])
        raw.exec(`DELETE FROM ${table}`);
      for (const row of rows) insertCertificate(raw, row);
      for (const list of lists) this.#putList(list);
      raw.exec("DELETE FROM setting WHERE name IN ('founder', 'machines', 'epoch')");
      raw.prepare("UPDATE setting SET value = ? WHERE name = 'network'").run(network);
      if (membership !== null)
        raw.prepare('INSERT INTO membership (one, json) VALUES (1, ?)').run(JSON.stringify(membership));
    });
    this.#anchor = undefined;
    this.#cache.clear();
    this.#asking.clear();
  }

  /** The name that this home chose for itself: of the certificates it has, as long as no other was configured. */
  subject(): string {
    const { subject } = this.#options;
    if (subject !== 'local') return subject;
    const name = /CN=(.*) publisher$/.exec(this.#rows().find((row) => row.role === 'publisher')?.subject ?? '')?.[1];
    return name !== undefined && NAME.test(name) ? name : subject;
  }

  /** Key ids of this home, also when its certificates have expired. */
  keyIds(): Readonly<Record<LeafRole, string>> {
    const id = (role: LeafRole) => this.#rows().find((row) => row.role === role)!.key_id;
    return { publisher: id('publisher'), validator: id('validator'), node: id('node') };
  }

  #register(): Promise<Members> {
    this.#members ??= Promise.all([import('./members.ts'), import('./issue.ts')]).then(
      ([{ Members: Register }, { issue }]) =>
        new Register({
          raw: this.#store.raw,
          transact: (write) => this.#store.transact(write),
          nowMs: () => this.#nowMs,
          own: () => this.keyIds(),
          issue: (role, subject, keys) => {
            const network = this.#network() ?? this.#options.network;
            const issuer = this.#usableAuthority('intermediate');
            return issue(
              { role, network, subject, keys, nowMs: this.#nowMs, issuer },
              this.#keys.authority('intermediate'),
            );
          },
        }),
    );
    return this.#members;
  }

  #committeeOnly(what: string): void {
    if (this.membership() === null) return;
    throw new HyperMeshError('committee-only', `Only a home of the network's committee can ${what}.`, {
      hint: 'Run the command on the machine of the founder.',
    });
  }

  /** Errors: `committee-unreachable` while the home is not connected to its network. */
  #followed(): NetworkAuthority {
    if (this.#authority !== undefined) return this.#authority;
    throw new HyperMeshError('committee-unreachable', 'This home is not connected to its network.');
  }

  /** Errors: `certificate-revoked` when the key of a role was stolen. */
  #checkRenewable(role: LeafRole): void {
    if (!this.#rows().some((row) => row.role === role && row.revoked_reason === 'key-compromise')) return;
    throw new HyperMeshError(
      'certificate-revoked',
      `The ${role} key was revoked as compromised; it gets no new certificate.`,
      { hint: 'Start a new home, which makes new keys.' },
    );
  }

  /** By its own register, or as a member by the lists of its network. Errors: `certificate-revoked`. */
  async #checkNotStolen(): Promise<void> {
    const own = this.#rows().filter((row) => LEAF_ROLES.some((role) => role === row.role));
    let stolen = own.some((row) => row.revoked_reason === 'key-compromise');
    if (!stolen && this.membership() !== null) {
      const { decodeRevocationList } = await import('../../wire/certificate.ts');
      const lists = this.#lists().map((list) => decodeRevocationList(list.der));
      stolen = own.some((row) => lists.some(({ revoked }) => revoked.get(row.serial)?.reason === 'key-compromise'));
    }
    if (!stolen) return;
    throw new HyperMeshError('certificate-revoked', 'A key of this home was revoked as compromised.', {
      hint: 'Start a new home, which makes new keys.',
    });
  }

  /** The signer of a head is not asked for its seat here: who checks a bundle does, and finds its votes by the same key. */
  async #checkHead(head: SignedTreeHead): Promise<void> {
    const { payload } = await this.verify(head.envelope, head.chain, { role: 'validator', atMs: head.timestampMs });
    if (head.envelope.payloadType !== TREE_HEAD_TYPE || !equal(payload, treeHeadPayload(head))) {
      throw new HyperMeshError('log-invalid', 'The head of the log that the committee sent was altered.');
    }
  }

  /** Certificates of a member, from its network. */
  async #renewFromNetwork(): Promise<void> {
    const membership = this.membership()!;
    const { checkCertification } = await import('./joining.ts');
    const answer = await this.#followed().renew((asked) =>
      this.certificationRequest({ networkId: membership.networkId, asked, secret: null }),
    );
    if (answer.anchor.root !== this.#anchorNow().root) {
      throw new HyperMeshError('certification-invalid', 'The committee answered with the root of another network.');
    }
    const { authorities, leaves, lists } = checkCertification(answer, this.keyIds(), this.#nowMs);
    const known = new Set(this.#rows().map(({ fingerprint }) => fingerprint));
    this.#store.transact((raw) => {
      for (const row of [...authorities, ...leaves]) if (!known.has(row.fingerprint)) insertCertificate(raw, row);
      for (const list of lists) if (this.#isNewer(list)) this.#putList(list);
    });
    this.#anchor = undefined;
  }

  #isNewer(list: RevocationListRow): boolean {
    return list.number > (this.#lists().find(({ issuer }) => issuer === list.issuer)?.number ?? -1);
  }

  /** Errors: `anchor-stale`. */
  async #freshLists(): Promise<void> {
    let cause: unknown;
    try {
      await this.refreshAnchor();
    } catch (error) {
      cause = error;
    }
    const stale = this.#lists().find((list) => list.next_update_ms < this.#nowMs);
    if (stale === undefined) return;
    throw new HyperMeshError(
      'anchor-stale',
      `What this home knows of the network's revocations was due for renewal on ${new Date(stale.next_update_ms).toISOString()}.`,
      {
        hint: 'Connect this machine to the network (or check its clock), then run the same command again.',
        ...(cause === undefined ? {} : { cause }),
      },
    );
  }

  /** Once at a time, and not again for some minutes after it failed; who needs the result now does not come this way. */
  #inBackground(what: 'news' | 'renew', work: () => Promise<void>): void {
    const before = this.#asking.get(what);
    if (before !== undefined && this.#nowMs < before.untilMs) return;
    const asked = work().catch(() => undefined);
    this.#asking.set(what, { work: asked, untilMs: this.#nowMs + ASK_AGAIN_MS });
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

  /** Errors: `certificate-revoked`, `certificate-expired`. */
  #usableAuthority(authority: 'root' | 'intermediate'): CertificateRow {
    const issuer = this.#newest(authority);
    if (issuer === undefined) {
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
    return issuer;
  }

  async #issueAgain(role: Exclude<CertificateRole, 'root'>): Promise<CertificateRow> {
    const { issue, keysIn } = await import('./issue.ts');
    const known = this.#rows().find((row) => row.role === role)!;
    const authority = authorityOf(role);
    const issuer = this.#usableAuthority(authority);
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
      await this.#renewAging(row);
      row = this.#newest(role);
    }
    if (row === undefined) {
      this.#checkRenewable(role);
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

  async #renewAging(row: CertificateRow): Promise<void> {
    if (this.membership() === null) return this.#exclusive(() => this.#keepCurrent());
    const renew = () => this.#exclusive(() => this.#renewFromNetwork());
    // An old one is as good as a new one until it ends: nobody waits for the network before.
    if (row.not_after_ms >= this.#nowMs) this.#inBackground('renew', renew);
    else await renew();
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
    const before = [...this.#rows(), ...(await this.#register()).issued()]
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
    try {
      const unlock = await openUnlock(this.#options, sealed);
      for (const text of sealed) checkUnlock(text, unlock);
      return unlock;
    } catch (error) {
      if (!isCoded(error, 'key-locked')) throw error;
      throw new HyperMeshError(
        'key-locked',
        'This home was not opened with the passphrase of the keys in the export.',
        {
          hint: 'Import into a new home that has that passphrase from its first command on: `hypermesh state import FILE --home NEW --passphrase-file FILE`.',
          cause: error,
        },
      );
    }
  }

  async #switched(unlock: Unlock | undefined): Promise<void> {
    this.#validator = null;
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

/** After the network was asked for something that can wait. */
const ASK_AGAIN_MS = 600_000;

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
