import { fromBase64 } from '../../../base/bytes.ts';
import type { Digest } from '../../../base/digest.ts';
import { HyperMeshError, isCoded } from '../../../base/errors.ts';
import type { Verified } from '../../../capabilities/trust.ts';
import type { LeafRole } from '../../../wire/certificate.ts';
import {
  decodeHello,
  decodeHelloDocument,
  decodeVoucher,
  encodeHello,
  encodeHelloDocument,
  encodeVoucher,
  HELLO_LIMITS,
  HELLO_TYPE,
  type HelloDocument,
  type Signed,
  VOUCHER_TYPE,
} from '../../../wire/hello.ts';
import type { TrustAnchor } from '../../../wire/signature.ts';
import type { ChannelOptions, NodeId } from './types.ts';

/** A hello counts from so long before it was made, for readers whose clocks are late. */
const BACKDATED_MS = 2 * 3_600_000;
/** How wrong a clock may be where that is harmless: a certificate that was issued a moment ago, elsewhere. */
const SKEW_MS = 3_600_000;

/** What the handshake proved. */
export interface Proved {
  readonly node: NodeId;
  readonly publisher: string;
  /** From then on the hello is worth nothing, and with it the connection. */
  readonly notAfterMs: number;
}

type Lent = Pick<ChannelOptions, 'networkId' | 'clock' | 'trust'>;

/** Says who this node is, and finds out who the others are. */
export class Identity {
  readonly #lent: Lent;
  readonly #transport: string;
  #mine: { readonly document: HelloDocument; readonly renewAtMs: number } | undefined;
  #making: Promise<HelloDocument> | undefined;

  constructor(lent: Lent, transport: string) {
    this.#lent = lent;
    this.#transport = transport;
  }

  async node(): Promise<NodeId> {
    return (await this.#lent.trust.identity('node')).keyId;
  }

  /** The document that this end sends; signed anew before half of the life of the one before. A guest gets the root of the network besides. */
  async document(isForGuest: boolean): Promise<Uint8Array> {
    const document = await this.#current();
    return encodeHelloDocument(isForGuest ? { ...document, anchor: await this.#lent.trust.anchor() } : document);
  }

  async #current(): Promise<HelloDocument> {
    const nowMs = this.#lent.clock.nowMs();
    if (
      this.#mine !== undefined &&
      nowMs < this.#mine.renewAtMs &&
      nowMs > this.#mine.renewAtMs - HELLO_LIMITS.lifeMsMax
    )
      return this.#mine.document;
    this.#making ??= this.#make(nowMs).finally(() => {
      this.#making = undefined;
    });
    return this.#making;
  }

  async #make(nowMs: number): Promise<HelloDocument> {
    const { trust, networkId } = this.#lent;
    const [node, publisher] = await Promise.all([trust.identity('node'), trust.identity('publisher')]);
    const names = { networkId, node: node.keyId, publisher: publisher.keyId };
    const notBeforeMs = nowMs - BACKDATED_MS;
    const notAfterMs = notBeforeMs + HELLO_LIMITS.lifeMsMax;
    const hello = encodeHello({ ...names, transport: this.#transport, notBeforeMs, notAfterMs });
    const [helloEnvelope, voucherEnvelope] = await Promise.all([
      trust.sign('node', HELLO_TYPE, hello),
      this.#mine?.document.voucher.envelope ?? trust.sign('publisher', VOUCHER_TYPE, encodeVoucher(names)),
    ]);
    const document = {
      hello: { envelope: helloEnvelope, chain: node.chain },
      voucher: { envelope: voucherEnvelope, chain: publisher.chain },
    };
    this.#mine = { document, renewAtMs: nowMs + (notAfterMs - nowMs) / 2 };
    return document;
  }

  /**
   * Who the holder of a TLS key is. With `pinned`, the other side may be of a network whose root is not known here: it brings a root, and only
   * the pinned node id counts, which is the digest of the keys that signed.
   * Errors: `peer-lied`, `identity-mismatch`, `network-mismatch`, `signature-invalid`, `certificate-*`.
   */
  async prove(
    bytes: Uint8Array,
    transport: string,
    options: { readonly pinned?: NodeId; readonly networkId?: Digest } = {},
  ): Promise<Proved> {
    const { pinned, networkId = this.#lent.networkId } = options;
    const document = decodeHelloDocument(
      bytes,
      pinned === undefined ? HELLO_LIMITS.bytesMax : HELLO_LIMITS.guestBytesMax,
    );
    if ((document.anchor === undefined) !== (pinned === undefined)) {
      throw mismatch(`a hello for a ${pinned === undefined ? 'guest' : 'member'}`);
    }
    const types = [document.hello.envelope.payloadType, document.voucher.envelope.payloadType];
    if (types[0] !== HELLO_TYPE || types[1] !== VOUCHER_TYPE) throw mismatch('signatures about something else');
    // What costs nothing is checked before signatures are: whoever replays what another node once said makes nobody work for it.
    const hello = decodeHello(fromBase64(document.hello.envelope.payload));
    if (hello.transport !== transport) throw mismatch('the hello of another TLS session');
    if (pinned !== undefined && hello.node !== pinned) throw otherNode(pinned, hello.node);
    if (hello.networkId !== networkId) {
      throw new HyperMeshError(
        'network-mismatch',
        `Expected a node of the network ${networkId}, but it is in ${hello.networkId}.`,
      );
    }
    const nowMs = this.#lent.clock.nowMs();
    if (nowMs < hello.notBeforeMs || nowMs > hello.notAfterMs) {
      throw mismatch('a hello that is not valid now', 'Check the clocks of both machines.');
    }
    const signed = await this.#verify('node', document.hello, document.anchor);
    if (signed.signer !== hello.node) throw mismatch('a hello that names another node than the one that signed it');
    const vouched = await this.#verify('publisher', document.voucher, document.anchor);
    const voucher = decodeVoucher(vouched.payload);
    if (
      vouched.signer !== hello.publisher ||
      voucher.publisher !== hello.publisher ||
      voucher.node !== hello.node ||
      voucher.networkId !== hello.networkId
    ) {
      throw mismatch('a voucher for something else');
    }
    return { node: hello.node, publisher: hello.publisher, notAfterMs: hello.notAfterMs };
  }

  async #verify(role: LeafRole, { envelope, chain }: Signed, anchor?: TrustAnchor): Promise<Verified> {
    const options = anchor === undefined ? { role } : { role, anchor };
    try {
      return await this.#lent.trust.verify(envelope, chain, options);
    } catch (error) {
      if (!isCoded(error, 'certificate-expired')) throw error;
      // What is not valid yet may be so elsewhere; what has expired has not become valid an hour later.
      return this.#lent.trust.verify(envelope, chain, { ...options, atMs: this.#lent.clock.nowMs() + SKEW_MS });
    }
  }
}

export function otherNode(expected: NodeId, came: NodeId): HyperMeshError {
  return new HyperMeshError(
    'identity-mismatch',
    `Expected the node ${expected}, but ${came} answered at that address.`,
    {
      hint: 'The address belongs to another node now, or somebody is in between.',
      details: { expected, came },
    },
  );
}

function mismatch(what: string, hint?: string): HyperMeshError {
  return new HyperMeshError('identity-mismatch', `The other node sent ${what}.`, hint === undefined ? {} : { hint });
}
