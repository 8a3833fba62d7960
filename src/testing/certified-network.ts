import { base64, fromBase64 } from '../base/bytes.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import { type Digest, digestOf } from '../base/digest.ts';
import type { CertificateInfo, Trust } from '../capabilities/trust.ts';
import { generateEd25519, signEd25519 } from '../subsystems/trustchain/ed25519.ts';
import { createFalcon } from '../subsystems/trustchain/falcon.ts';
import { verifyEnvelope } from '../subsystems/trustchain/index.ts';
import { certificateRow, issue, issueList } from '../subsystems/trustchain/issue.ts';
import type { CertificateRow } from '../subsystems/trustchain/tables.ts';
import type { CertificateRole, CertificateSigner, LeafRole } from '../wire/certificate.ts';
import type { PublicKeys } from '../wire/key-id.ts';
import { pae, sealEnvelope, type TrustAnchor } from '../wire/signature.ts';

/** What a node of a {@link CertifiedNetwork} signs and verifies with: true keys, kept in memory. */
export interface CertifiedNode {
  readonly trust: Pick<Trust, 'identity' | 'sign' | 'verify' | 'anchor'>;
  /** Key ids. */
  readonly node: string;
  readonly publisher: string;
  /** Plain data from which {@link certifiedNode} makes the same node in another process. */
  readonly secrets: NodeSecrets;
}

export interface NodeSecrets {
  readonly roles: Readonly<Record<'node' | 'publisher', SecretRole>>;
  readonly authorities: readonly string[];
  readonly anchor: TrustAnchor;
}

/** Base64. */
interface SecretRole {
  readonly falcon: string;
  readonly ed25519: string;
  readonly certificate: string;
}

interface Holder {
  readonly keys: PublicKeys;
  readonly falconSecret: Uint8Array;
  readonly ed25519Seed: Uint8Array;
  readonly row: CertificateRow;
}

const falcon = createFalcon();

/** A root and as many certified nodes as a test wants, without homes on disk. Their keys are fresh and their signatures real. */
export class CertifiedNetwork {
  readonly networkId: Digest;
  readonly clock: Clock;
  readonly #root: Holder;
  readonly #intermediate: Holder;
  #anchor: TrustAnchor;
  #lists = 1;
  readonly #revoked: { readonly serial: string; readonly atMs: number; readonly reason: 'key-compromise' }[] = [];

  static async found(clock: Clock = systemClock): Promise<CertifiedNetwork> {
    const root = await holder('root', clock);
    const intermediate = await holder('intermediate', clock, root);
    const network = new CertifiedNetwork(clock, root, intermediate);
    await network.#list();
    return network;
  }

  private constructor(clock: Clock, root: Holder, intermediate: Holder) {
    this.clock = clock;
    this.#root = root;
    this.#intermediate = intermediate;
    this.#anchor = { root: base64(root.row.der), revocations: [] };
    this.networkId = digestOf(root.row.der);
  }

  async node(clock: Clock = this.clock): Promise<CertifiedNode> {
    const role = async (name: LeafRole): Promise<SecretRole> => {
      const { falconSecret, ed25519Seed, row } = await holder(name, clock, this.#intermediate);
      return { falcon: base64(falconSecret), ed25519: base64(ed25519Seed), certificate: base64(row.der) };
    };
    const roles = { node: await role('node'), publisher: await role('publisher') };
    const authorities = [this.#intermediate, this.#root].map(({ row }) => base64(row.der));
    return certifiedNode({ roles, authorities, anchor: this.#anchor }, { clock, anchor: () => this.#anchor });
  }

  /** From now on every node of the network refuses what that one signs as a node. */
  async revoke(node: CertifiedNode): Promise<void> {
    const { serial } = await node.trust.identity('node');
    this.#revoked.push({ serial, atMs: this.clock.nowMs(), reason: 'key-compromise' });
    await this.#list();
  }

  async #list(): Promise<void> {
    const about = { number: this.#lists++, nowMs: this.clock.nowMs() };
    const lists = await Promise.all([
      issueList(this.#root.row, { ...about, revoked: [] }, signerOf(this.#root)),
      issueList(this.#intermediate.row, { ...about, revoked: this.#revoked }, signerOf(this.#intermediate)),
    ]);
    this.#anchor = { ...this.#anchor, revocations: lists.map(({ der }) => base64(der)) };
  }
}

/** Signs and verifies with keys that are plain data. */
export function certifiedNode(
  secrets: NodeSecrets,
  {
    clock = systemClock,
    anchor: currentAnchor = () => secrets.anchor,
  }: { clock?: Clock; anchor?: () => TrustAnchor } = {},
): CertifiedNode {
  const of = (role: LeafRole): SecretRole & { readonly row: CertificateRow } => {
    if (role === 'validator') throw new TypeError('nodes of a test network do not vote');
    const held = secrets.roles[role];
    return { ...held, row: certificateRow(fromBase64(held.certificate), role) };
  };
  const trust: CertifiedNode['trust'] = {
    async identity(role) {
      const { row, certificate } = of(role);
      return { ...infoOf(row), chain: [certificate, ...secrets.authorities] };
    },
    async sign(role, payloadType, payload) {
      const held = of(role);
      const signer = signerOf({ falconSecret: fromBase64(held.falcon), ed25519Seed: fromBase64(held.ed25519) });
      const bytes = pae(payloadType, payload);
      const signatures = { falcon: await signer.falcon(bytes), ed25519: await signer.ed25519(bytes) };
      return sealEnvelope(payloadType, payload, held.row.key_id, signatures);
    },
    verify: (envelope, chain, { role, atMs = clock.nowMs(), anchor = currentAnchor() }) =>
      verifyEnvelope(envelope, chain, anchor, { role, atMs }),
    anchor: async () => currentAnchor(),
  };
  return { trust, node: of('node').row.key_id, publisher: of('publisher').row.key_id, secrets };
}

async function holder(role: CertificateRole, clock: Clock, issuer?: Holder): Promise<Holder> {
  const pair = falcon.generate();
  const { publicKey, seed } = generateEd25519();
  const secrets = { falconSecret: pair.secretKey, ed25519Seed: seed };
  const keys = { falcon: pair.publicKey, ed25519: publicKey };
  const row = await issue(
    {
      ...{ role, network: 'test', subject: 'test', keys, nowMs: clock.nowMs() },
      ...(issuer === undefined ? {} : { issuer: issuer.row }),
    },
    signerOf(issuer ?? secrets),
  );
  return { keys, ...secrets, row };
}

function signerOf({ falconSecret, ed25519Seed }: Pick<Holder, 'falconSecret' | 'ed25519Seed'>): CertificateSigner {
  return {
    falcon: async (bytes) => falcon.sign(bytes, falconSecret),
    ed25519: async (bytes) => signEd25519(bytes, ed25519Seed),
  };
}

function infoOf(row: CertificateRow): CertificateInfo {
  const { fingerprint, serial, subject, issuer, role, key_id, not_before_ms, not_after_ms } = row;
  return {
    ...{ fingerprint, serial, subject, issuer, role },
    ...{ keyId: key_id, notBeforeMs: not_before_ms, notAfterMs: not_after_ms, status: 'valid' },
  };
}
