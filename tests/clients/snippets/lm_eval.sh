# OPENAI_API_KEY is what completions are asked with, auth_token what the tokenizer is.
lm_eval --model local-completions --tasks "${TASK:-lambada_openai}" --model_args \
  "model=$MODEL,base_url=$OPENAI_BASE_URL/completions,tokenizer_backend=remote,auth_token=$OPENAI_API_KEY"
