import { chmod, mkdir, readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { base64 } from '../../base/bytes.ts';
import type { Digest } from '../../base/digest.ts';
import { HyperMeshError, storageError } from '../../base/errors.ts';
import type { Json } from '../../base/json.ts';
import { openSqlite, type SqliteStore } from '../../base/sqlite.ts';
import type { StateSection } from '../../capabilities/state.ts';
import type { CertificateInfo, Trust, Verified } from '../../capabilities/trust.ts';
import type { Attestation, FastAttestation, ValidatorKeys } from '../../wire/attestation.ts';
import type { LeafRole, RevocationReason } from '../../wire/certificate.ts';
import type { Certification, JoinRequest, OpenedRequest } from '../../wire/certification.ts';
import type { KeyText } from '../../wire/entry.ts';
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
import type { SignedTerms } from '../../wire/terms.ts';
import { Attester, envelopeHolds, wordHolds } from './attester.ts';
import { Authority } from './authority.ts';
import { Certificates } from './certificates.ts';
import { ChainCache } from './chain-cache.ts';
import { falconReady } from './falcon.ts';
import { Following, type NetworkAuthority } from './following.ts';
import { Keys } from './keys.ts';
import type { Unlock } from './keystore.ts';
import type { Certified, MemberRow, Members, OpenDoor } from './members.ts';
import { NetworkNotes, type StoredMembership } from './network-notes.ts';
import { verifyEnvelope } from './offline.ts';
import { type SettledOptions, settle, type TrustOptions } from './options.ts';
import { isListDue, RevocationLists } from './revocation-lists.ts';
import { STAGED_PREFIX, trustSection } from './state-section.ts';
import { type CertificateRow, issuedRows, MIGRATIONS } from './tables.ts';
import { TransparencyLog } from './transparency-log.ts';
import { openUnlock, sealedIn, unlockImported } from './unlocking.ts';

/**
 * Opens the trust data of a home, or makes it: keys, root, intermediate, publisher, validator and node certificates, and empty revocation lists.
 * Certificates with less than a third of their life left are renewed.
 * Errors: `key-locked` (passphrase missing or wrong), `key-invalid`, `network-mismatch`, `config-invalid`, `storage-*`.
 */
export async function openTrust(options: TrustOptions): Promise<TrustChain> {
  const settled = settle(options);
  const { directory } = settled;
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
    return await TrustChain.open(store, settled);
  } catch (error) {
    await store[Symbol.asyncDispose]();
    throw error;
  }
}

/**
 * The trust subsystem of one home. Secret keys stay in the key worker; everything else is in `trust.db`. A home is its own authority, and
 * perhaps founder of a network, or it is a member and follows the network that certified its keys.
 */
export class TrustChain implements Trust, AsyncDisposable {
  readonly section: StateSection;
  readonly #store: SqliteStore;
  readonly #options: SettledOptions;
  readonly #cache: ChainCache;
  readonly #certificates: Certificates;
  readonly #notes: NetworkNotes;
  readonly #authority: Authority;
  readonly #lists: RevocationLists;
  readonly #following: Following;
  readonly #log: TransparencyLog;
  readonly #attester: Attester;
  /** Of this home's validator, and the public keys of each role; forgotten when they may have changed. */
  #validator: Promise<ValidatorKeys> | null = null;
  readonly #public = new Map<LeafRole, KeyText>();
  #keys: Keys;
  #members: Promise<Members> | undefined;
  /** The last of the changes to certificates and lists: they happen one after the other. */
  #changing: Promise<unknown> = Promise.resolve();

  /** Use {@link openTrust}. */
  static async open(store: SqliteStore, options: SettledOptions): Promise<TrustChain> {
    const ready = store.raw.prepare('SELECT value FROM setting WHERE name = ?').get('network');
    if (ready !== undefined && options.network !== 'local' && ready['value'] !== options.network) {
      throw new HyperMeshError(
        'network-mismatch',
        `This home belongs to the network "${ready['value'] as string}", not "${options.network}".`,
        { hint: 'Use another --home for another network.' },
      );
    }
    const sealed = sealedIn(store);
    const unlock = await openUnlock(options, sealed);
    const keys = new Keys(unlock, sealed, { idleMs: options.limits.keysIdleMs });
    const trust = new TrustChain(store, options, keys);
    try {
      if (ready === undefined) await trust.#authority.found(options.network);
      await trust.#exclusive(async () => {
        // A member asks its network, once it can be reached.
        if (trust.membership() !== null) return;
        await trust.#authority.keepCurrent();
        await trust.#authority.addNodeKey();
      });
      return trust;
    } catch (error) {
      await keys[Symbol.asyncDispose]();
      throw error;
    }
  }

  private constructor(store: SqliteStore, options: SettledOptions, keys: Keys) {
    this.#store = store;
    this.#options = options;
    this.#keys = keys;
    this.#cache = new ChainCache(options.limits);
    const nowMs = () => this.#nowMs;
    const certificates = new Certificates(store, options);
    const notes = new NetworkNotes(store.raw, nowMs);
    const lent = { store, certificates, notes, nowMs, keys: () => this.#keys };
    this.#certificates = certificates;
    this.#notes = notes;
    this.#authority = new Authority(lent);
    this.#lists = new RevocationLists(lent);
    this.#following = new Following({
      ...lent,
      verify: (envelope, chain, asked) => this.verify(envelope, chain, asked),
      exclusive: (change) => this.#exclusive(change),
    });
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
      checkKeys: (texts) => unlockImported(options, texts),
      ownKeyIds: async () => {
        const [own, { keyIdOf }] = await Promise.all([this.#keys.publicKeys(), import('../../wire/key-id.ts')]);
        return new Map([...own].map(([name, pair]) => [name, keyIdOf(pair)]));
      },
      switched: (unlock) => this.#switched(unlock),
      // The log first: a batch that is under way may need a renewal to finish.
      exclusive: (change) => this.#log.between(() => this.#exclusive(change)),
    });
  }

  async identity(role: LeafRole): Promise<CertificateInfo & { readonly chain: CertificateChain }> {
    const row = await this.#current(role);
    return { ...this.#certificates.describe(row), chain: this.#certificates.chainOf(row) };
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
    // What is signed here is checked here a moment later: by the ledger without waiting.
    void falconReady();
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
    await falconReady();
    return wordHolds(word, payloadType, statement, keys);
  }

  async signedBy(envelope: Envelope, keys: Pick<ValidatorKeys, 'falcon' | 'ed25519'>): Promise<boolean> {
    await falconReady();
    return envelopeHolds(envelope, keys);
  }

  async publicKeys(role: LeafRole): Promise<KeyText> {
    const known = this.#public.get(role);
    if (known !== undefined) return known;
    // A certificate has them in the clear: a node starts, and idles, without the worker that opens the secret keys.
    const { keysIn } = await import('./issue.ts');
    const { falcon, ed25519 } = keysIn(this.#certificates.anyOf(role));
    const keys = { falcon: base64(falcon), ed25519: base64(ed25519) };
    this.#public.set(role, keys);
    return keys;
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
    if (this.membership() !== null) await this.#following.keepFresh();
    else if (this.#certificates.lists().some((list) => isListDue(list, this.#nowMs)))
      await this.#exclusive(() => this.#lists.refresh());
    return this.#certificates.anchor();
  }

  async certificates(): Promise<readonly CertificateInfo[]> {
    return this.#certificates.rows().map((row) => this.#certificates.describe(row));
  }

  async renew(role: LeafRole): Promise<CertificateInfo> {
    return this.#exclusive(async () => {
      this.#checkRenewable(role);
      if (this.membership() === null) return this.#certificates.describe(await this.#authority.issueAgain(role));
      await this.#following.renew();
      return this.#certificates.describe(this.#certificates.newest(role)!);
    });
  }

  async revoke(fingerprint: string, reason: RevocationReason): Promise<void> {
    this.#committeeOnly('revoke certificates');
    const issued = issuedRows(this.#store.raw).find((row) => row.fingerprint === fingerprint);
    // Of a member everything is taken back: one certificate alone says nothing about the others of the same home.
    if (issued !== undefined) await this.removeMember(issued.node, reason);
    else await this.#exclusive(() => this.#lists.revokeOwn(fingerprint, reason));
  }

  async logAppend(leaf: Uint8Array, certificate: Json): Promise<LogInclusion> {
    return this.membership() === null ? this.logHere(leaf) : this.#following.logAppend(leaf, certificate);
  }

  /** In the log of this home's validator, whose word counts where it has a seat. */
  logHere(leaf: Uint8Array): Promise<LogInclusion> {
    return this.#log.append(leaf);
  }

  async logHead(): Promise<SignedTreeHead> {
    return this.membership() === null ? this.#log.head() : this.#following.logHead();
  }

  async logConsistency(from: number, to: number): Promise<readonly string[]> {
    return this.membership() === null ? this.#log.consistency(from, to) : this.#following.logConsistency(from, to);
  }

  /** The name that this home chose for itself. */
  subject(): string {
    return this.#certificates.subject();
  }

  /** Key ids of this home, also when its certificates have expired. */
  keyIds(): Readonly<Record<LeafRole, string>> {
    return this.#certificates.keyIds();
  }

  // --- of a founder

  /** Whether this home opened its own network to others. */
  isFounder(): boolean {
    return this.#notes.isFounder();
  }

  /** Durable when it returns. Errors: `committee-only`. */
  setFounder(isFounder: boolean): void {
    this.#committeeOnly('open a network');
    this.#notes.setFounder(isFounder);
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
    enter?: (opened: OpenedRequest) => OpenDoor | null,
  ): Promise<Certified & Pick<Certification, 'network' | 'anchor' | 'authorities'>> {
    this.#committeeOnly('certify');
    const register = await this.#register();
    const certified = await this.#exclusive(() => register.certify(request, networkId, enter));
    return {
      ...certified,
      network: this.#certificates.network(),
      anchor: await this.anchor(),
      authorities: [base64(this.#certificates.newest('intermediate')!.der)],
    };
  }

  async members(): Promise<readonly MemberRow[]> {
    return (await this.#register()).members();
  }

  async member(node: string): Promise<MemberRow | undefined> {
    return (await this.#register()).member(node);
  }

  /**
   * Takes all certificates of a member back; unless it left by itself it comes back by an invite only. Safe to repeat.
   * Errors: `committee-only`, `not-a-member`.
   */
  async removeMember(
    node: string,
    reason: RevocationReason,
    { left = false }: { readonly left?: boolean } = {},
  ): Promise<MemberRow> {
    this.#committeeOnly('remove members');
    const register = await this.#register();
    return this.#exclusive(() => this.#lists.revokeMember(register, node, reason, left));
  }

  // --- of the network that the home is in

  /** On which nodes the publishers with seats are, by key id, as far as this home was told once. */
  machines(): ReadonlyMap<string, string> {
    return this.#notes.machines();
  }

  /** In the place of those that were known. Durable when it returns. */
  rememberMachines(machines: ReadonlyMap<string, string>): void {
    this.#notes.rememberMachines(machines);
  }

  /** When this home learned that the epoch began, by its own clock; null for any but the last one that it noted. */
  epochSeenAtMs(epoch: number): number | null {
    return this.#notes.epochSeenAtMs(epoch);
  }

  /** From now on it is known. Safe to repeat. */
  noteEpoch(epoch: number): void {
    this.#notes.noteEpoch(epoch);
  }

  /** What the founder said last of who may come without an invite; a member has it from there. */
  terms(): SignedTerms | null {
    return this.#notes.terms();
  }

  /** In the place of those that were known. Durable when it returns. */
  keepTerms(signed: SignedTerms): void {
    this.#notes.keepTerms(signed);
  }

  /** Null in a network of its own. */
  membership(): StoredMembership | null {
    return this.#notes.membership();
  }

  // --- of a member

  /** Who is asked from here on. */
  follow(authority: NetworkAuthority | undefined): void {
    this.#following.follow(authority);
  }

  /** What asks for certificates, signed by all three keys of this home. Errors: those of {@link Following.request}. */
  certificationRequest(to: Parameters<Following['request']>[0]): Promise<JoinRequest> {
    return this.#following.request(to);
  }

  /** Asks the network what was revoked. Errors: those of {@link Following.refreshAnchor}. */
  refreshAnchor(): Promise<void> {
    return this.#following.refreshAnchor();
  }

  // --- from one network to another

  /** Whether {@link adopt} will take it, at the time `answer.atMs`. Touches nothing. Errors: `certification-invalid`, `clock-skewed`. */
  async checkCertification(answer: Certification): Promise<void> {
    const { checkCertification } = await import('./joining.ts');
    checkCertification(answer, this.keyIds(), answer.atMs);
  }

  /** Whether {@link abandon} will work. Touches nothing. Errors: `certificate-revoked` when a key of this home was stolen, `key-locked`. */
  async checkAbandon(): Promise<void> {
    await this.#following.checkNotStolen();
    await this.#authority.newNetwork(this.#options.network);
  }

  /**
   * From here on the certificates of this home are those of the network: one transaction that replaces certificates, lists and log. Safe to repeat.
   * The answer was checked before it was kept for this, so the time does not count any more.
   */
  async adopt(answer: Certification, membership: StoredMembership): Promise<void> {
    const { checkCertification } = await import('./joining.ts');
    await this.#log.between(() =>
      this.#exclusive(async () => {
        const { authorities, leaves, lists } = checkCertification(answer, this.keyIds(), answer.atMs);
        this.#certificates.replace([...authorities, ...leaves], lists, answer.network, membership);
        this.#forget();
      }),
    );
  }

  /** Back to a root of its own, with the same keys: one transaction. Does nothing in a home that is no member. */
  async abandon(): Promise<void> {
    await this.#log.between(() =>
      this.#exclusive(async () => {
        if (this.membership() === null) return;
        const { network } = this.#options;
        const { rows, lists } = await this.#authority.newNetwork(network);
        this.#certificates.replace(rows, lists, network, null);
        this.#forget();
      }),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#log.settled();
    await this.#following.settled();
    await this.#changing.catch(() => undefined);
    await this.#keys[Symbol.asyncDispose]();
    await this.#store[Symbol.asyncDispose]();
  }

  #register(): Promise<Members> {
    this.#members ??= import('./members.ts').then(
      ({ Members: Register }) =>
        new Register({
          raw: this.#store.raw,
          transact: (write) => this.#store.transact(write),
          nowMs: () => this.#nowMs,
          own: () => this.keyIds(),
          issue: (role, subject, keys) => this.#authority.issue(role, subject, keys),
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

  /** Errors: `certificate-revoked` when the key of a role was stolen. */
  #checkRenewable(role: LeafRole): void {
    const rows = this.#certificates.rows();
    if (!rows.some((row) => row.role === role && row.revoked_reason === 'key-compromise')) return;
    throw new HyperMeshError(
      'certificate-revoked',
      `The ${role} key was revoked as compromised; it gets no new certificate.`,
      { hint: 'Start a new home, which makes new keys.' },
    );
  }

  /** The certificate to sign with now. */
  async #current(role: LeafRole): Promise<CertificateRow> {
    let row = this.#certificates.newest(role);
    if (row !== undefined && this.#certificates.isAging(row)) {
      if (this.membership() === null) await this.#exclusive(() => this.#authority.keepCurrent());
      else await this.#following.renewAging(row);
      row = this.#certificates.newest(role);
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

  async #signHead(size: number, root: Uint8Array): Promise<SignedTreeHead> {
    const row = await this.#current('validator');
    const chain = this.#certificates.chainOf(row);
    const head = {
      origin: `${this.#certificates.network()}/log/${row.key_id.slice(0, 16)}`,
      size,
      root: rootDigest(root),
      timestampMs: this.#nowMs,
    };
    return { ...head, envelope: await this.sign('validator', TREE_HEAD_TYPE, treeHeadPayload(head)), chain };
  }

  get #nowMs(): number {
    return this.#options.clock.nowMs();
  }

  #exclusive<T>(change: () => Promise<T>): Promise<T> {
    const result = this.#changing.then(change, change);
    this.#changing = result.catch(() => undefined);
    return result;
  }

  /** What was checked and asked in the network before. */
  #forget(): void {
    this.#cache.clear();
    this.#following.forget();
  }

  async #switched(unlock: Unlock | undefined): Promise<void> {
    this.#validator = null;
    this.#public.clear();
    this.#certificates.reread();
    this.#cache.clear();
    if (unlock === undefined) return;
    const before = this.#keys;
    this.#keys = new Keys(unlock, sealedIn(this.#store), { idleMs: this.#options.limits.keysIdleMs });
    await before[Symbol.asyncDispose]();
    await this.#authority.addNodeKey();
  }
}
