;; The inner loop of the erasure code (docs/protocol/coding.md). Compiled into erasure.ts; a test checks that they agree.
;; Memory: the products of one coefficient with 0..15 at 0 and with 0, 16, .. 240 at 16; the sum from 64; what is added from 64 + 262,144.
(module
  (memory (export "memory") 9)
  ;; sum ^= coefficient * added, for `length` bytes, rounded up to 16.
  (func (export "add") (param $length i32)
    (local $at i32) (local $low v128) (local $high v128) (local $bytes v128)
    (local.set $low (v128.load (i32.const 0)))
    (local.set $high (v128.load (i32.const 16)))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $at) (local.get $length)))
        (local.set $bytes (v128.load offset=262208 (local.get $at)))
        (v128.store offset=64 (local.get $at)
          (v128.xor
            (v128.load offset=64 (local.get $at))
            (v128.xor
              (i8x16.swizzle (local.get $low) (v128.and (local.get $bytes) (v128.const i32x4 0x0f0f0f0f 0x0f0f0f0f 0x0f0f0f0f 0x0f0f0f0f)))
              (i8x16.swizzle (local.get $high) (i8x16.shr_u (local.get $bytes) (i32.const 4))))))
        (local.set $at (i32.add (local.get $at) (i32.const 16)))
        (br $next)))))
