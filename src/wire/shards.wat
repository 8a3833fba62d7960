;; The inner loop of FastCDC (docs/protocol/shards.md). Compiled into shards.ts; a test checks that they agree.
;; Memory: the gear table (256 x 4 bytes) at 0, the bytes to look at from 1024.
(module
  (memory (export "memory") 17)
  ;; The rolling hash, kept between calls.
  (global $gear (export "gear") (mut i32) (i32.const 0))
  ;; Looks at the bytes from `at` up to `until`. Returns the position after the first byte that makes the masked bits
  ;; of the hash zero, or 0 when there is none.
  (func (export "scan") (param $at i32) (param $until i32) (param $mask i32) (result i32)
    (local $hash i32)
    (local.set $hash (global.get $gear))
    (block $none
      (loop $next
        (br_if $none (i32.ge_u (local.get $at) (local.get $until)))
        (local.set $hash
          (i32.add
            (i32.shl (local.get $hash) (i32.const 1))
            (i32.load (i32.shl (i32.load8_u (local.get $at)) (i32.const 2)))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br_if $next (i32.and (local.get $hash) (local.get $mask)))
        (return (local.get $at))))
    (global.set $gear (local.get $hash))
    (i32.const 0)))
